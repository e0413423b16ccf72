"""The network's weights in one flat vector, of which each rank computes its share and all gather the rest.

A bucket's gathering is begun behind the optimizer's step and waited for by the block that needs it, so that what is far
from the network's beginning is sent beside its forward pass. DeepSpeed 0.19.8 gathers all of them before it goes on.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

from bigdiff.engine.buckets import Buckets
from bigdiff.engine.groups import Groups
from bigdiff.runtime.clock import Clock

LISTS: Final = ("down_blocks", "up_blocks")  # of diffusers' networks; each of their members waits for itself
SINGLE: Final = "mid_block"


class Weights:
    """The weights of one process; `master`, fp32 [buckets.own], is what its optimizer steps.

    The parameters become views of the flat vector, and the masters begin with what they have, rounded to their type.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], buckets: Buckets, groups: Groups, clock: Clock, apart: bool
    ) -> None:
        """`apart`: the blocks may wait by themselves; else the whole network waits for all."""
        some, rank = list(parameters.values()), groups.member
        self._buckets, self._groups, self._clock, self._apart = buckets, groups, clock, apart
        flat = torch.zeros(buckets.total, dtype=some[0].dtype, device=some[0].device)
        self._flat = [flat[buckets.whole(one)] for one in buckets.buckets]
        self._of: dict[int, int] = {}  # a parameter's bucket, by identity
        for number, bucket in enumerate(buckets.buckets):
            for parameter, begin in zip(bucket.parameters, bucket.offsets, strict=True):
                one = some[parameter]
                place = flat[begin : begin + one.numel()].view(one.shape)
                place.copy_(one.detach())
                one.data = place
                self._of[id(one)] = number
        shares = [one.share for one in buckets.buckets]
        self._mine = [one[rank * share : (rank + 1) * share] for one, share in zip(self._flat, shares, strict=True)]
        self.master = torch.cat(self._mine).float()
        self._masters = list(torch.split(self.master, shares))
        self._coming: dict[int, dist.Work] = {}  # buckets that are on their way

    def waited_for_by(self, module: nn.Module) -> None:
        """Have the module, and its blocks, wait for what they need before their forward passes."""
        if self._buckets.ranks == 1:
            return
        blocks = list(blocks_of(module)) if self._apart else []
        theirs = {id(one) for block in blocks for one in block.parameters()}
        needs = [(block, list(block.parameters())) for block in blocks]
        needs.append((module, [one for one in module.parameters() if id(one) not in theirs]))
        for one, parameters in needs:
            numbers = sorted({self._of[id(parameter)] for parameter in parameters if id(parameter) in self._of})
            one.register_forward_pre_hook(partial(self._wait, numbers))

    @torch.no_grad()
    def publish(self, order: Sequence[int]) -> None:
        """Give all ranks what the masters have become, the buckets in this order; begun, not waited for."""
        self.settle()
        torch._foreach_copy_(self._mine, self._masters)
        if self._buckets.ranks > 1:
            for number in order:
                mine, whole = self._mine[number], self._flat[number]
                work = dist.all_gather_into_tensor(whole, mine, group=self._groups.inside, async_op=True)
                assert work is not None, "all processes are in the group"
                self._coming[number] = work

    def settle(self) -> None:
        """Wait until all weights may be read; a GPU's stream does, its host goes on."""
        self._wait(list(self._coming))

    def _wait(self, numbers: Iterable[int], *_: object) -> None:
        """A hook gives the module and its inputs, too."""
        if not self._coming:
            return
        coming = [self._coming.pop(number) for number in numbers if number in self._coming]
        with self._clock.running():
            for work in coming:
                work.wait()


def blocks_of(module: nn.Module) -> Iterable[nn.Module]:
    """The down, middle and up blocks of the networks of diffusers within."""
    for name, one in module.named_modules():
        path = ["", *name.split(".")]
        if path[-1] == SINGLE or path[-2] in LISTS:
            yield one
