"""What the engine really holds and asks torch.distributed for; each rank runs it as a script and prints JSON.

observed.py STAGE CASE...: a case is "key=value key=value" over the stage's file; "reuse=N" sets
stage3_max_reuse_distance, and ends DeepSpeed's gathering ahead, which keeps all weights of a small network.
"""

import gc
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.engine import deepspeed as engine_module
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.ema import Averages
from bigdiff.runtime.world import World, enter, leave

CONFIGURATION = engine_module.configuration
KINDS = {"allreduce_": "all-reduce", "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter"}


def network() -> nn.Module:
    """Weights of which some are larger than what ZeRO-3 keeps whole; 1,228,851 in all, which no rank count divides."""
    torch.manual_seed(0)
    sides = (*[350] * 9, 351, 351)
    layers = [nn.Linear(a, b, bias=b != 351) for a, b in itertools.pairwise(sides)]
    return nn.Sequential(*layers)


class Calls(TorchDispatchMode):
    """Counts collectives and the bytes of the whole tensors that they are about."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and "barrier" not in func.__name__:
            kind = KINDS[func.__name__.split(".")[0]]
            first = args[0][0] if isinstance(args[0], list) else args[0]  # what comes out
            scale = self.ranks if kind == "reduce-scatter" else 1
            self.calls[kind] += 1
            self.bytes[kind] += first.numel() * first.element_size() * scale
        return func(*args, **(kwargs or {}))


def storages() -> dict[int, torch.UntypedStorage]:
    """All of this process's, by address."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter)]
    return {one.untyped_storage().data_ptr(): one.untyped_storage() for one in found if one.device.type == "cpu"}


def observe(stage: Stage, world: World) -> dict[str, Any]:
    before = storages()  # held, so that no address comes back
    net = network()
    engine = Engine(net, dict(net.named_parameters()), stage, world)
    averages = Averages(engine.partition.masters, stage.ema)
    given = torch.randn(stage.batch.micro, 350).to(torch.bfloat16 if engine.half else torch.float32)

    def step() -> None:
        for _ in range(engine.accumulation):
            engine.backward(engine(given).float().pow(2).mean())
            engine.step(1)
        averages.update(engine.partition.masters, 0)
        engine.settle()  # what gloo ends when torch's profiler has stopped crashes

    for _ in range(3):  # ZeRO-3 learns the order of the layers first
        step()
    held = sum(one.nbytes() for address, one in storages().items() if address not in before)
    with Calls(world.size) as calls:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return {"held": held, "peak": most, "calls": calls.calls, "bytes": calls.bytes, "half": engine.half}


def reusing(distance: int) -> Callable[..., dict[str, Any]]:
    def configuration(stage: Stage, world_size: int, half: bool, elements: int) -> dict[str, Any]:
        config = CONFIGURATION(stage, world_size, half, elements)
        config["zero_optimization"] |= {"stage3_max_reuse_distance": distance, "stage3_prefetch_bucket_size": 0}
        return config

    return configuration


def main(file: str, cases: Sequence[str]) -> None:
    world, told = enter(120), {}
    for case in cases:
        settings = [one for one in case.split() if not one.startswith("reuse=")]
        reuse = [int(one[6:]) for one in case.split() if one.startswith("reuse=")]
        engine_module.configuration = reusing(reuse[0]) if reuse else CONFIGURATION
        told[case] = observe(load_stage(file, settings), world)
    leave()
    print(json.dumps(told))
