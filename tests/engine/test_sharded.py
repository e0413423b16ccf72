"""ZeRO-1 of our own; its numbers beside plain torch's and DeepSpeed's are in test_deepspeed.py, test_optim.py, ..."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ranks = Callable[..., list[str]]
SCRIPT = """
import json, sys, torch
import torch.distributed as dist
from torch import nn
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import enter, leave

world = enter(60)
stage = load_stage(sys.argv[1], ["engine.sharding=overlapped", *json.loads(sys.argv[2])])
torch.manual_seed(world.rank)  # every rank begins with weights of its own
net = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 3))
net[3].requires_grad_(False)
net.register_buffer("kept", torch.full((1,), world.rank + 1.0))
trained = {name: one for name, one in net.named_parameters() if one.requires_grad}
engine = Engine(net, trained, stage, world)
engine.settle()
calls = []
for name in ("reduce_scatter_tensor", "all_gather_into_tensor", "all_reduce"):
    def noted(*given, of=getattr(dist, name), name=name, **named):
        bytes = max(one.numel() for one in given) * given[0].element_size()
        calls.append([name, bytes, dist.get_world_size(named.get("group"))])
        return of(*given, **named)
    setattr(dist, name, noted)
began = torch.cat([one.detach().float().flatten() for one in (*net.parameters(), net.kept)])
kinds = sorted({str(one.dtype) for one in net.parameters()}), str(net.kept.dtype)
engine.communication()
for number in range(engine.accumulation):
    x = torch.randn(stage.batch.micro, 5).to(next(net.parameters()).dtype)
    engine.backward(engine(x).float().square().mean())
    stepped = engine.step(0)
    assert (stepped is None) == (number + 1 < engine.accumulation)
engine.settle()
weights = torch.cat([one.detach().float().flatten() for one in net.parameters()])
everyone = [torch.empty_like(weights) for _ in range(world.size)]
dist.all_gather(everyone, weights)
masters = world.gather([engine._zero._groups.member, engine._zero._master.tolist()])
print(json.dumps({"began": began.tolist(), "kinds": kinds, "calls": calls, "seconds": engine.communication(),
                  "passes": engine.accumulation, "alike": all(torch.equal(one, weights) for one in everyone),
                  "masters": masters, "moved": not torch.equal(weights, began[: len(weights)])}))
leave()
"""


@pytest.mark.parametrize(
    ("size", "options", "width"),
    [
        (1, ["batch.micro=4"], 4),
        (2, ["batch.micro=4"], 4),
        (2, ["batch.micro=2"], 4),
        (2, ["batch.micro=2", "engine.precision=bf16"], 2),
        (4, ["engine.bucket_elements=42"], 4),
        (4, ["engine.shard_ranks=2", "batch.total=16", "batch.micro=4"], 4),
        (2, ["engine.shard_ranks=1", "batch.micro=4"], 4),
    ],
)
def test_gradients_go_once_a_pass_and_weights_once_a_step(
    run_ranks: Ranks, stage_file: Path, size: int, options: list[str], width: int
) -> None:
    outputs = run_ranks(SCRIPT, size, str(stage_file), json.dumps(options))
    told = [json.loads(output.splitlines()[-1]) for output in outputs]
    for one in told:
        assert one["began"] == told[0]["began"]  # rank 0's, frozen ones and buffers, too
        assert one["began"][-1] == 1.0
        assert one["kinds"] == [[f"torch.{'float32' if width == 4 else 'bfloat16'}"], "torch.float32"]
        assert one["alike"] and one["moved"]
        buckets = 2 if "engine.bucket_elements=42" in options else 1
        for member, master in one["masters"]:  # copies of the same part are the same, bit for bit
            assert all(other == master for place, other in one["masters"] if place == member)
        if size == 1:
            assert one["calls"] == []
            continue
        if "engine.shard_ranks" in str(options):
            grouped(one["calls"], size)
            continue
        names = [name for name, *_ in one["calls"]]
        # the norm goes round between the last pass and the update
        assert names == [
            *["reduce_scatter_tensor"] * buckets * one["passes"],
            "all_reduce",
            *["all_gather_into_tensor"] * buckets,
        ]
        sent = {name: sum(size for which, size, _ in one["calls"] if which == name) for name in names}
        # 35 + 7 + 7 + 7 + 21 + 3 weights, each at a multiple of 64 elements, each rank's share one, too
        vector = {(2, 1): 384, (4, 2): 2 * 256}[size, buckets]
        assert sent["all_gather_into_tensor"] == width * vector
        assert sent["reduce_scatter_tensor"] == width * vector * one["passes"]
        assert sent["all_reduce"] == 4 and one["seconds"] > 0


def grouped(calls: list[list[Any]], size: int) -> None:
    """One bucket of 80 weights, each parameter at a multiple of 64 elements: 384 of them."""
    if size == 2:  # groups of one: nothing is scattered
        assert calls == [["all_reduce", 4 * 384, 2]]
        return
    assert calls == [
        ["reduce_scatter_tensor", 4 * 384, 2],
        ["all_reduce", 4 * 192, 2],  # a rank's own part, between the groups
        ["all_gather_into_tensor", 4 * 2, 2],  # the norm's parts
        ["all_gather_into_tensor", 4 * 384, 2],
    ]
