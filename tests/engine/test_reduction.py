"""The sum of all ranks' gradients, its order and what is sent when; beside torch's own gradients."""

import json
from collections.abc import Callable

import pytest

Ranks = Callable[..., list[str]]
NAMES = ("last", "first", "unused", "middle")  # in the canonical order, which is not that of their use
NETWORK = """
import json, sys, torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from bigdiff.config.errors import RunError
from bigdiff.engine.buckets import cut
from bigdiff.engine.groups import Groups
from bigdiff.engine.reduction import Reduction
from bigdiff.runtime.clock import Clock
from bigdiff.runtime.world import enter, leave

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(6, 3), nn.Linear(5, 6)  # not in the order of their use
        self.unused, self.middle = nn.Linear(5, 7), nn.Linear(6, 6)

    def forward(self, x):
        return self.last(self.middle(self.first(x)).relu())

world = enter(60)
torch.manual_seed(0)
net = Net()
names = [name for name, _ in net.named_parameters()]
weights = list(net.parameters())
buckets = cut([one.numel() for one in weights], 45, world.size)
groups = Groups(size=world.size, count=1, member=world.rank, number=0)
own = torch.full((buckets.own,), float("nan"))
sent = []
given = dist.reduce_scatter_tensor
def noted(into, flat, **named):
    begin = flat.storage_offset()
    sent.append([names[number] for one in buckets.buckets if one.begin == begin for number in one.parameters])
    return given(into, flat, **named)
dist.reduce_scatter_tensor = noted

def whole(share):
    # every rank's share of each bucket, put together: the vector with gaps, then by parameter
    everyone = [torch.empty_like(share) for _ in range(world.size)]
    dist.all_gather(everyone, share)
    flat = torch.cat([torch.cat([one[b.own : b.own + b.share] for one in everyone]) for b in buckets.buckets])
    places = [begin for one in buckets.buckets for begin in one.offsets]
    return [flat[begin : begin + one.numel()].view_as(one) for begin, one in zip(places, weights)]
"""
SUMS = (
    NETWORK
    + """
reduction = Reduction(weights, buckets, groups, own, Clock(world.device))
inputs = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(world.rank))
told = []
for number, first in enumerate((True, False, True)):
    before = [0.0 if first else one.clone() for one in whole(own)]
    expected = torch.autograd.grad(net(inputs[number]).square().sum(), weights, allow_unused=True)
    expected = [torch.zeros_like(one) if grad is None else grad for one, grad in zip(weights, expected)]
    for one in expected:
        dist.all_reduce(one)
    sent.clear()
    reduction.begin(first)
    net(inputs[number]).square().sum().backward()
    begun = len(sent)
    reduction.finish(first)
    close = all(torch.allclose(one, e + b) for one, e, b in zip(whole(own), expected, before))
    told.append({"close": close, "sent": list(sent), "begun": begun, "left": [one.grad is None for one in weights]})
print(json.dumps({"told": told, "order": list(reduction.order), "buckets": len(buckets.buckets)}))
leave()
"""
)
TWICE = (
    NETWORK
    + """
reduction = Reduction(weights, buckets, groups, own, Clock(world.device))
reduction.begin(True)
x = torch.randn(3, 5, requires_grad=True)
hidden = checkpoint(net.first, x, use_reentrant=True) + checkpoint(net.first, 2 * x, use_reentrant=True)
try:
    net.last(hidden).sum().backward()
except RunError as error:
    print(error)
leave()
"""
)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_pass_adds_the_sum_over_the_ranks(run_ranks: Ranks, size: int) -> None:
    for output in run_ranks(SUMS, size):
        found = json.loads(output.splitlines()[-1])
        for one in found["told"]:
            assert one["close"]
            assert one["left"] == [True] * 8  # no gradient is kept beside its sum
            if size > 1:
                assert len(one["sent"]) == found["buckets"] == len({str(part) for part in one["sent"]}) == 4


def test_buckets_are_sent_in_the_order_of_the_backward_pass(run_ranks: Ranks) -> None:
    for output in run_ranks(SUMS, 2):
        found = json.loads(output.splitlines()[-1])
        first, *later = found["told"]
        # before a pass was seen: from the last parameter on, so that all wait for one that comes last
        last, early, unused, middle = ([f"{name}.weight", f"{name}.bias"] for name in NAMES)
        assert first["sent"] == [middle, unused, early, last] and first["begun"] == 1
        for one in later:
            assert one["sent"] == [last, middle, early, unused]
            assert one["begun"] == 3  # beside the pass; what took no part behind it


def test_a_gradient_that_comes_twice_ends_the_run(run_ranks: Ranks) -> None:
    (output,) = run_ranks(TWICE, 1)
    assert "came twice in one backward pass" in output and "engine.sharding=deepspeed" in output
