"""The norm and the clipping of ZeRO-1 and 2, beside DeepSpeed's own; by several ranks in test_deepspeed.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Theirs
from torch.overrides import TorchFunctionMode
from bigdiff.config.load import load_stage
from bigdiff.engine import norms
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import enter, leave

class Counting(TorchFunctionMode):  # what is called; on a CPU torch itself takes such a norm tensor by tensor
    count = 0
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func.__name__ != "__get__"
        return func(*args, **(kwargs or {}))

world = enter(60)
told = []
for number in (1, 2):
    stage = load_stage(sys.argv[1], [f"engine.zero_stage={number}", "batch.micro=8", "optim.grad_clip=0.5"])
    torch.manual_seed(0)
    module = torch.nn.Sequential(*(torch.nn.Linear(3 + one, 4 + one) for one in range(20)))  # 40 parameters
    engine = Engine(module, dict(module.named_parameters()), stage, world)
    engine.backward(engine(torch.randn(8, 3)).square().mean())
    zero = engine._engine.optimizer
    given = zero.averaged_gradients[0], zero.params_in_partition[0]
    one = {}
    with Counting() as counting:
        one["expected"] = Theirs.get_grad_norm_direct(zero, *given).item()
    one["their operations"] = counting.count
    with Counting() as counting:
        found = norms.norm(zero, *given)
    one["operations"], one["kind"], one["found"] = counting.count, str(found.dtype), found.item()
    one["whole"] = zero.scaled_global_norm().item()
    padding = torch.full((5,), 7.0)
    padding._zero_padding = True
    one["of padding"] = norms.norm(zero, [padding], []).item()
    one["clipped"] = []
    for total in (0.25, 0.5, 0.75, 40.0, float("inf")):
        theirs, ours = torch.linspace(-3, 3, 1000), torch.linspace(-3, 3, 1000)
        Theirs.unscale_and_clip_grads(zero, [theirs], torch.tensor(total))
        norms.clip(zero, [ours], torch.tensor(total))
        one["clipped"].append([torch.equal(ours, theirs), ours.abs().max().item()])
    one["broken"] = []
    for value in (float("nan"), float("inf")):
        given[0][3].view(-1)[1] = value
        one["broken"].append([norms.norm(zero, *given).isfinite().item(), zero.scaled_global_norm().item()])
    zero.clip_grad = 0.0
    kept = torch.ones(3)
    norms.clip(zero, [kept], torch.tensor(100.0))
    one["not clipped"] = kept.tolist()
    told.append(one)
print(json.dumps(told))
leave()
"""


def test_norm_and_clipping_are_deepspeeds_in_few_operations(
    run_ranks: Callable[..., list[str]], stage_file: Path
) -> None:
    (output,) = run_ranks(SCRIPT, 1, str(stage_file))
    told = json.loads(output.splitlines()[-1])
    assert len(told) == 2
    for one in told:
        assert one["kind"] == "torch.float32" and one["found"] > 0
        assert one["found"] == pytest.approx(one["expected"], rel=1e-6) and one["whole"] == one["found"]
        assert one["operations"] < 10 < 40 <= one["their operations"]  # on a GPU a kernel or more each
        assert one["of padding"] == 0
        assert [same for same, _ in one["clipped"]] == [True] * 5
        assert [largest for _, largest in one["clipped"]][:2] == [3.0, pytest.approx(3.0, rel=1e-5)]
        assert [largest for _, largest in one["clipped"]][2:] == pytest.approx([2.0, 0.0375, 0.0], rel=1e-5)
        assert one["broken"] == [[False, float("inf")]] * 2  # what DeepSpeed and the guard look for
        assert one["not clipped"] == [1.0] * 3
