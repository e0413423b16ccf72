"""The small training of course.py, once per number of ranks, with all cases that the tests here look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

STAGE = {
    "name": "toy",
    "resolution": 64,
    "steps": 7,
    "data": {"latents": "none"},
    "batch": {"total": 8, "micro": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
    "optim": {"lr": 0.01, "warmup_steps": 2},
}
SCRIPT = """
import sys
sys.path.insert(0, "tests/engine")
import course
course.main(sys.argv[1], sys.argv[2], sys.argv[3:])
"""
STAGES = [*(f"engine.zero_stage={stage}" for stage in range(4)), "engine.sharding=overlapped"]
GROUPS = "engine.sharding=overlapped engine.shard_ranks={}"
# bf16 sums are refused at DeepSpeed's stages 0 and 1, so these have one pass; of 2 ranks
BF16 = [f"{stage} engine.precision=bf16 batch.micro=4" for stage in STAGES]
BF16_PASSES = [f"{stage} engine.precision=bf16 batch.micro=1" for stage in STAGES[2:]]
CASES = {
    1: [f"agree {stage} batch.micro={micro}" for stage in STAGES for micro in (8, 4, 2, 1)],
    2: [
        *(f"agree {stage} batch.micro={micro}" for stage in STAGES for micro in (4, 2, 1)),
        "agree engine.zero_stage=3 batch.micro=2 sub_group_size=10",
        # buckets that hold two gradients, and such that one does not go into
        *(f"agree {stage} batch.micro=2 engine.bucket_elements={size}" for stage in STAGES[1:] for size in (42, 10)),
        *(f"agree {case}" for case in BF16 + BF16_PASSES),
        *(f"skip {case}" for case in STAGES + BF16 + BF16_PASSES),
        *(f"skip {case} optim.grad_clip=0" for case in STAGES + BF16[:2]),
        *(f"{mode} {GROUPS.format(1)} batch.micro=2" for mode in ("agree", "skip")),
        f"skip {GROUPS.format(1)} optim.grad_clip=0",
        *(f"save {stage} batch.total=12 file={number}" for number, stage in enumerate(STAGES)),
    ],
    3: [
        *(f"own {stage} batch.total=6{kind}" for stage in STAGES for kind in ("", " engine.precision=bf16")),
        "own engine.zero_stage=3 batch.total=6 sub_group_size=10",
        f"own {GROUPS.format(1)} batch.total=6",
        *(f"load {GROUPS.format(1)} batch.total=12 file={file}" for file in (1, 3)),
        *(f"load {stage} batch.total=12 file={file}" for stage in STAGES for file in (1, 3)),
    ],
    4: [f"agree {stage} batch.micro={micro}" for stage in (*STAGES, GROUPS.format(2)) for micro in (2, 1)],
}
Told = list[dict[str, Any]]
TOLD: dict[int, Told] = {}


@pytest.fixture
def stage_file(tmp_path: Path) -> Path:
    """A stage whose engine settings are the defaults."""
    file = tmp_path / "engine.yaml"
    file.write_text(yaml.safe_dump(STAGE))
    return file


@pytest.fixture
def course(
    run_ranks: Callable[..., list[str]], stage_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Told]:
    """What each rank of so many printed: the network's initial weights, and the cases."""
    folder = tmp_path_factory.getbasetemp() / "engine"
    folder.mkdir(exist_ok=True)

    def told(size: int) -> Told:
        if size not in TOLD:
            if size == 3:
                told(2)  # saved what these load
            outputs = run_ranks(SCRIPT, size, str(stage_file), str(folder), *CASES[size])
            TOLD[size] = [json.loads(output.splitlines()[-1]) for output in outputs]
        return TOLD[size]

    return told


@pytest.fixture
def cases() -> Callable[..., list[str]]:
    """The cases of so many ranks that begin with a mode, of those with `kind` in them or not."""

    def of(size: int, mode: str, bf16: bool | None = None) -> list[str]:
        found = [case for case in CASES[size] if case.startswith(mode)]
        return [case for case in found if bf16 is None or ("bf16" in case) == bf16]

    return of
