"""The engine of each ZeRO stage and precision on one and two ranks, observed once for all tests here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigdiff.plan.probe import Probe

STAGE = {
    "name": "observed",
    "resolution": 64,
    "steps": 7,
    "data": {"latents": "none"},
    "batch": {"total": 8, "micro": 4},
    "optim": {"warmup_steps": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
}
SCRIPT = """
import sys
sys.path.insert(0, "tests/plan")
import observed
observed.main(sys.argv[1], sys.argv[2:])
"""
BUCKETS = "engine.bucket_elements=250000"
CASES = [
    *(f"engine.zero_stage=0 engine.precision={kind}" for kind in ("fp32", "bf16")),
    *(
        f"engine.zero_stage={stage} engine.precision={kind} {BUCKETS}"
        for stage in (1, 2, 3)
        for kind in ("fp32", "bf16")
    ),
    f"engine.zero_stage=1 engine.precision=fp32 batch.micro=2 {BUCKETS}",
    *(f"engine.zero_stage={stage} engine.precision=bf16 batch.micro=2 {BUCKETS}" for stage in (2, 3)),
    f"engine.zero_stage=2 engine.precision=bf16 {BUCKETS} ema.decays=[0.9,0.99]",
    *(f"engine.zero_stage=3 engine.precision=fp32 {BUCKETS} reuse={distance}" for distance in (0, 1_000_000, 10**9)),
]
Seen = dict[str, dict[str, Any]]
SEEN: dict[int, Seen] = {}


@pytest.fixture
def stage_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage that the cases change."""
    file = tmp_path_factory.getbasetemp() / "observed.yaml"
    file.write_text(yaml.safe_dump(STAGE))
    return file


@pytest.fixture
def observed(run_ranks: Callable[..., list[str]], stage_file: Path) -> Callable[[int], Seen]:
    """What the first of so many ranks saw of each case."""

    def seen(ranks: int) -> Seen:
        if ranks not in SEEN:
            total = f"batch.total={4 * ranks}"
            outputs = run_ranks(SCRIPT, ranks, str(stage_file), *(f"{case} {total}" for case in CASES))
            SEEN[ranks] = json.loads(outputs[0].splitlines()[-1])
        return SEEN[ranks]

    return seen


@pytest.fixture
def probed() -> Probe:
    """What a measurement of two CPU ranks may have found."""
    return Probe(
        date="2026-11-22",
        device="cpu",
        ranks=2,
        stage="quickstart-32px",
        flops=10**9,
        half=False,
        image=2e-3,
        fixed=5e-2,
        micro=16,
        spread=0.1,
        element=3e-9,
        step=1e-2,
        matmul=7e10,
        rate=7e8,
        latency=6e-4,
        seconds=40.0,
    )
