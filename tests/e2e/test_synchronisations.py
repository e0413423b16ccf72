"""How often a training step makes the host wait for the device, or would on one: each such call is named here.

A CPU has no device to wait for, so what is counted are the calls that read a tensor's value, or copy plain numbers into
one. What waits in a kernel's launch, in an allocation or in a collective is not seen; what DeepSpeed waits for with
synchronize() is looked at in tests/engine/test_waits.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

STEPS, FIRST = 12, 4  # counted are the steps from FIRST on; the last one logs and saves
# calls in a step, by what is called and by whom
COMMON = {
    # losses and flags of the ranks, and the norm, of the step before: on the host by the time that this step's passes
    # are queued, between which and its update they are read (tests/train/test_loop.py); nothing waits for the device
    "tolist in agreed": 1,
    # which captions are encoded: drawn on the host on any device; tests/train/test_inputs.py shows that it asks none
    "numpy in kept": 1,
}
CASES = {
    "fp32": (["engine.zero_stage=1", "batch.micro=4"], COMMON),
    "bf16": (["engine.zero_stage=1", "batch.micro=4", "engine.precision=bf16"], COMMON),
    # two micro-batches
    "accumulating": (["engine.zero_stage=2", "batch.micro=2"], COMMON | {"numpy in kept": 2}),
    "overlapped": (
        ["engine.sharding=overlapped", "engine.zero_stage=2", "batch.micro=2"],
        COMMON | {"numpy in kept": 2},
    ),
    "replicated": (["engine.zero_stage=0", "batch.micro=4"], COMMON),
}
SCRIPT = """
import json, sys, traceback
from collections import Counter
from pathlib import Path
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from bigdiff.config.load import load_stage
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup

READS = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
         Tensor.__index__, Tensor.nonzero, torch.nonzero, Tensor.equal, torch.equal, Tensor.unique, torch.unique,
         Tensor.is_nonzero, torch.is_nonzero, torch.allclose, Tensor.masked_select, torch.masked_select,
         torch.tensor, torch.as_tensor}
first, last = int(sys.argv[3]), int(sys.argv[4])

class Waits(TorchFunctionMode):
    counts = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS:
            frames = [one for one in traceback.extract_stack() if "/torch/" not in one.filename][:-1]
            caller, file = frames[-1].name, Path(frames[-1].filename).name
            site = f"{func.__name__} in {caller}" + (f" of {file}" if caller == "step" else "")
            self.counts[site] += 1
        return func(*args, **(kwargs or {}))

class Watch(Watchdog):
    waits = Waits()

    def at(self, step, phase):
        super().at(step, phase)
        if phase == "data" and step == first:
            self.waits.__enter__()
        if phase == "data" and step == last:
            self.waits.__exit__(None, None, None)

world = enter(60)
told = {}
for options in json.loads(sys.argv[2]):
    Waits.counts = Counter()
    stage = load_stage(sys.argv[1], options)
    with setup.building(stage, world, Stop(), Watch(world, Path(stage.runs), 60)) as run:
        loop.train(run)
    told[stage.name] = Waits.counts
print(json.dumps(told))
"""


@pytest.mark.parametrize("ranks", [2])
def test_a_step_reads_what_is_named_and_no_more(
    run_ranks: Callable[..., list[str]], toy: Path, tmp_path: Path, ranks: int
) -> None:
    common = [f"runs={tmp_path}", f"steps={STEPS}", "log.every=99", "checkpoint.every=99", "data.audit=true"]
    options = [[*common, f"name={name}", *settings] for name, (settings, _) in CASES.items()]
    outputs = run_ranks(SCRIPT, ranks, str(toy / "stage.yaml"), json.dumps(options), str(FIRST), str(STEPS - 1))
    for output in outputs:
        told = json.loads(output.splitlines()[-1])
        for name, (_, known) in CASES.items():
            assert {site: count / (STEPS - 1 - FIRST) for site, count in told[name].items()} == known, name
