"""Which ranks share the optimizer's state between them, and which have the same part of it.

Neighbours, as the ranks of one node are, shard among themselves; groups of them have copies. A ring over few ranks is
short, and between the groups goes an all-reduce of a rank's own part, which NCCL sends along a tree.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Where a rank stands."""

    size: int  # ranks of a group of neighbours
    count: int  # groups
    member: int  # this rank's place in its group
    number: int  # its group's
    inside: dist.ProcessGroup | None = None  # its group; none: all ranks are one
    between: dist.ProcessGroup | None = None  # those of all groups in its place; none with one group

    def total(self, own: Tensor) -> Tensor:
        """The sum over the group of each rank's scalar; the same in all groups where their parts are, bit for bit."""
        if self.size == 1:
            return own
        if self.count == 1:
            dist.all_reduce(own)
            return own
        told = own.new_empty(self.size)  # and not reduced: each group might do that in an order of its own
        dist.all_gather_into_tensor(told, own.view(1), group=self.inside)
        return told.sum()

    def part(self, length: int) -> slice:
        """Of a rank's own vector, what it alone answers for: the groups' parts are the whole of it."""
        each = -(-length // self.count)
        return slice(min(self.number * each, length), min((self.number + 1) * each, length))

    def whole(self, part: Tensor, length: int) -> Tensor:
        """The own vector [length] out of what each group answers for; collective."""
        if self.count == 1:
            return part
        each = -(-length // self.count)
        padded = torch.nn.functional.pad(part, (0, each - len(part)))
        found = padded.new_empty(each * self.count)
        dist.all_gather_into_tensor(found, padded, group=self.between)
        return found[:length]


def formed(rank: int, ranks: int, size: int, timeout: timedelta) -> Groups:
    """Groups of `size` neighbours each, which divides the number of ranks; collective."""
    count = ranks // size
    inside = between = None
    if count > 1:
        inside = _mine([list(range(first, first + size)) for first in range(0, ranks, size)], timeout)
        between = _mine([list(range(first, ranks, size)) for first in range(size)], timeout)
    return Groups(size=size, count=count, member=rank % size, number=rank // size, inside=inside, between=between)


def _mine(every: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """Of groups in which each rank is once, this one's."""
    found, _ = dist.new_subgroups_by_enumeration(every, timeout=timeout)
    assert isinstance(found, dist.ProcessGroup)
    return found
