"""The time in collectives of a real engine on two gloo ranks, one of which is late."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

LATE = 0.4  # seconds
SCRIPT = """
import json, sys, time, torch
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import enter, leave
stage = load_stage(sys.argv[1], sys.argv[2:])
w = enter(60)
torch.manual_seed(0)
network = torch.nn.Linear(500, 300)  # larger than what ZeRO-3 keeps whole, so that it is gathered ahead
engine = Engine(network, dict(network.named_parameters()), stage, w)
def step(number, wait=0.0, before=False):
    for _ in range(engine.accumulation):
        time.sleep(wait if before else 0.0)
        loss = engine(torch.ones(2, 500)).square().mean()
        time.sleep(0.0 if before else wait)
        engine.backward(loss)
        engine.step(number)
first = engine.communication()
step(0)
w.barrier()
engine.communication()
step(1, %f * w.rank, before=%s)
late = engine.communication()
began = time.perf_counter()
step(2)
step(3)
even, took = engine.communication(), time.perf_counter() - began
again = engine.communication()
leave()
print(json.dumps([first, late, even, took, again]))
"""


@pytest.mark.parametrize(("stage", "before"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_who_waits_for_another_is_told_from_who_is_late(
    run_ranks: Callable[..., list[str]], stage_file: Path, stage: int, before: bool
) -> None:
    """ZeRO-3 alone sends before a forward pass, and has a handle to wait for."""
    words = (str(stage_file), f"engine.zero_stage={stage}", "batch.micro=4", "engine.precision=fp32")
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(SCRIPT % (LATE, before), 2, *words)]
    for first, _, even, took, again in told:
        assert first == again == 0.0
        assert 0 < even < took
    waited, was_late = (one[1] for one in told)
    assert waited > 0.8 * LATE and was_late < waited
