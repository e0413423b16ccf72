"""What the host does not wait for under ZeRO-1 and 2: as on a device with streams, whose calls are noted here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch
from contextlib import nullcontext
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import stage_1_and_2
from bigdiff.config.load import load_stage
from bigdiff.engine import waits
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import enter, leave

class Stream:  # of a device; on a CPU all is done in the host's order
    def __init__(self, name):
        self.name = name
    def wait_stream(self, other):
        events.append(f"{self.name} waits for {other.name}")

class Device:  # DeepSpeed's accelerator, as one that computes beside the host
    def __getattr__(self, name):
        return getattr(get_accelerator(), name)
    def resolves_data_dependency(self):
        return False
    def current_stream(self):
        return Stream("main")
    def stream(self, stream):
        return nullcontext()
    def synchronize(self):
        events.append("the host waits")

world, told, events = enter(60), {}, []
torch.Tensor.record_stream = lambda tensor, stream: None
for case in json.loads(sys.argv[2]):
    stage = load_stage(sys.argv[1], case.split())
    for how in ("plain", "ours", "theirs"):
        torch.manual_seed(0)
        module = torch.nn.Sequential(*(torch.nn.Linear(5, 5) for one in range(4)))
        engine = Engine(module, dict(module.named_parameters()), stage, world)
        zero = engine._engine.optimizer
        device = Device() if how != "plain" else get_accelerator()
        stage_1_and_2.get_accelerator = waits.get_accelerator = lambda: device
        if how != "plain":
            zero.reduction_stream = Stream("reduction")
        if how == "theirs":
            del zero.independent_gradient_partition_epilogue, zero._update_model_bit16_weights
        bucket = zero.allreduce_bucket
        def noted(*given, bucket=bucket, **named):
            events.append("reduced")
            return bucket(*given, **named)
        zero.allreduce_bucket = noted
        events.clear()
        passes = []
        for number in range(3 * engine.accumulation):
            given = torch.randn(4, 5, generator=torch.Generator().manual_seed(world.rank + 2 * number))
            loss = engine(given.bfloat16() if engine.half else given).float().square().mean()
            engine.backward(loss)
            passes.append(list(events))
            events.clear()
            engine.step(number // engine.accumulation)
        (flat,), (group,) = zero.bit16_groups_flat, zero.round_robin_bit16_groups
        offsets = [(one.data_ptr() - flat.data_ptr()) // flat.element_size() for one in group]
        weights = torch.cat(engine.partition.masters).tolist()
        told[f"{case} {how}"] = {"passes": passes, "weights": weights, "offsets": offsets}
        told["places"] = [int(one) for one in zero.round_robin_bit16_offsets[0]]
leave()
print(json.dumps(told))
"""
CASES = [
    f"batch.micro=4 batch.total={4 * 2 * passes} engine.zero_stage={stage} engine.precision={kind} {bucket}"
    for stage, kind, passes in ((1, "fp32", 1), (1, "fp32", 2), (1, "bf16", 1), (2, "fp32", 2), (2, "bf16", 2))
    for bucket in ("engine.bucket_elements=1000", "engine.bucket_elements=30", "engine.bucket_elements=8")
]


def test_a_stream_waits_where_deepspeed_has_the_host_wait(
    run_ranks: Callable[..., list[str]], stage_file: Path
) -> None:
    for output in run_ranks(SCRIPT, 2, str(stage_file), json.dumps(CASES)):
        told = json.loads(output.splitlines()[-1])
        for case in CASES:
            plain, ours, theirs = (told[f"{case} {how}"] for how in ("plain", "ours", "theirs"))
            assert ours["weights"] == theirs["weights"] == plain["weights"], case
            assert ours["offsets"] == told["places"], case
            assert all(one[-1] == "the host waits" for one in theirs["passes"] if "reduced" in one), case
            reduced = [one for one in ours["passes"] if "reduced" in one]
            assert len(reduced) == 3 * (1 if "zero_stage=1" in case else len(ours["passes"]) // 3), case
            for one in reduced:
                assert one.index("main waits for reduction") < one.index("reduced"), case  # DeepSpeed's own, per bucket
                last = max(at for at, event in enumerate(one) if event == "reduced")
                assert "main waits for reduction" in one[last:], case
                assert "the host waits" not in one, case


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_norm_that_is_not_finite_is_not_asked_for(
    run_ranks: Callable[..., list[str]], stage_file: Path, value: str
) -> None:
    script = """
import sys, torch
from deepspeed.runtime.zero import stage_1_and_2
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import enter

stage = load_stage(sys.argv[1], ["engine.zero_stage=1", "engine.precision=fp32", "batch.micro=8"])
world, module = enter(60), torch.nn.Linear(3, 3)
engine = Engine(module, dict(module.named_parameters()), stage, world)
asks = stage_1_and_2.is_invalid_grad_norm
before = engine.partition.masters[0].clone()
engine.backward(engine(torch.full((8, 3), float(sys.argv[2]))).square().mean())
stepped = engine.step(5)
assert not stepped.norm.isfinite() and torch.equal(engine.partition.masters[0], before)
assert engine._adam.found_inf == 1 and not engine._engine.optimizer.overflow  # the device's decision, not the host's
assert stage_1_and_2.is_invalid_grad_norm is asks
engine.backward(engine(torch.ones(8, 3)).square().mean())
assert engine.step(6).norm.isfinite() and not torch.equal(engine.partition.masters[0], before)
"""
    run_ranks(script, 1, str(stage_file), value)
