"""What each unit of a UNet keeps for the backward pass, what computing it again takes, and which are worth it.

A forward pass on the meta device is followed: every tensor that autograd saves is noted with the unit that saves it.
What one unit alone saves, and was not given, is gone when that unit is recomputed; what it was given stays.
Checkpointing stops computing when the last saved tensor is there again, so that operators behind it are not counted.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from bigdiff.models import activations, checkpointing, flops
from bigdiff.models.network import Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One that can be recomputed by itself; of one image."""

    name: str
    kept: int  # bytes that are not there between its forward and its backward pass if it is recomputed
    flops: int  # of computing it again


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Of one image through a network, with attention by a flash kernel, as in bigdiff.models.activations."""

    units: tuple[Unit, ...]  # in the order in which they are computed
    saved: int  # bytes that autograd keeps of the forward pass with nothing recomputed
    peak: int  # bytes at most, anywhere in both passes, with nothing recomputed

    def keeps(self, names: Collection[str]) -> int:
        """Bytes that autograd keeps of the forward pass when these are recomputed."""
        return self.saved - sum(one.kept for one in self.units if one.name in names)

    def most(self, names: Collection[str]) -> int:
        """Bytes at most when these are recomputed: what is kept, and the largest of them while it is there again.

        An upper bound, nearly: when the first units are computed again, what the last ones kept is gone.
        """
        found = [one.kept for one in self.units if one.name in names]
        return self.peak - sum(found) + max(found, default=0)

    def again(self, names: Collection[str]) -> int:
        """FLOPs of recomputing these."""
        return sum(one.flops for one in self.units if one.name in names)


def measured(found: Network, half: bool) -> Ledger:
    """Of a network on the meta device that recomputes nothing, moved to bf16 or fp32; a few seconds for SD's."""
    with flops.counter() as count:
        work = _followed(found, count.get_total_flops).work
    found.denoiser.to(torch.bfloat16 if half else torch.float32)
    with activations.flash():
        seen = _followed(found, int)
    units = tuple(Unit(name=name, kept=seen.kept(name), flops=work[name]) for name in seen.given)
    return Ledger(units=units, saved=seen.saved, peak=activations.of(found, half).peak)


def cheapest(units: Sequence[Unit], excess: float) -> tuple[str, ...] | None:
    """The names of those whose recomputation takes the fewest FLOPs and lowers the peak by `excess` bytes an image.

    Recomputing a set lowers the peak by what its units keep, but for the largest. None where all do not reach it.
    Exact: a knapsack (covering), by the sums that no cheaper set reaches (Nemhauser & Ullmann 1969). Those are few, as
    a UNet has many equal units: milliseconds for SD's 37. At worst they are 2^n; 90 unequal units that all cost about
    the same a byte took 13 s.
    """
    if excess <= 0:
        return ()
    best: tuple[int, tuple[str, ...]] | None = None
    front: list[tuple[float, int, tuple[str, ...]]] = [(0, 0, ())]  # bytes, FLOPs, names; both rise
    for one in sorted((one for one in units if one.kept > 0), key=lambda one: (one.kept, one.flops)):
        reached, work, names = front[-1]
        if reached >= excess and (best is None or work + one.flops < best[0]):
            best = work + one.flops, (*names, one.name)  # `one` is the largest of this set
        more = [(min(kept + one.kept, excess), work + one.flops, (*names, one.name)) for kept, work, names in front]
        front = _front([*front, *more])
    if best is None:
        return None
    return tuple(one.name for one in units if one.name in best[1])


def _front(
    sets: list[tuple[float, int, tuple[str, ...]]],
) -> list[tuple[float, int, tuple[str, ...]]]:
    """Those that no other set beats, in bytes and in FLOPs."""
    found: list[tuple[float, int, tuple[str, ...]]] = []
    for one in sorted(sets, key=lambda one: (one[1], -one[0])):  # stable: of equals the first
        if not found or one[0] > found[-1][0]:
            found.append(one)
    return found


class _Followed:
    """Who saves which storage in a forward pass."""

    def __init__(self, found: Network, inputs: Sequence[torch.Tensor], counted: Callable[[], int]) -> None:
        known = [*found.denoiser.parameters(), *found.denoiser.buffers(), *inputs]
        self._known = {one.untyped_storage() for one in known}
        self._names = {unit: name for name, unit in checkpointing.units(found.denoiser.unet).items()}
        self._counted, self._unit, self._last = counted, "", 0
        self._savers: dict[torch.UntypedStorage, set[str]] = {}
        self.given: dict[str, set[torch.UntypedStorage]] = {}  # by unit, in the order of the calls
        self.work: dict[str, int] = {}  # FLOPs by unit, until it saves its last tensor

    def visit(self, unit: nn.Module, *arguments: Any) -> Any:  # noqa: ANN401 (whatever the unit takes and gives)
        """Compute `unit`."""
        self._unit = name = self._names[unit]
        tensors = [one for one in tree_leaves(arguments) if isinstance(one, torch.Tensor)]
        self.given[name] = {one.untyped_storage() for one in tensors} - self._known
        began = self._last = self._counted()
        output = unit(*arguments)
        self.work[name], self._unit = self._last - began, ""
        return output

    def save(self, tensor: torch.Tensor) -> None:
        """What autograd keeps is this; there is no backward pass."""
        self._last, storage = self._counted(), tensor.untyped_storage()
        if storage not in self._known:
            self._savers.setdefault(storage, set()).add(self._unit)

    @property
    def saved(self) -> int:
        """Bytes in all."""
        return sum(one.nbytes() for one in self._savers)

    def kept(self, name: str) -> int:
        """Bytes that the unit alone saves, less those of what it is given and nobody saves, which would be kept."""
        given = self.given[name]
        own = sum(one.nbytes() for one, by in self._savers.items() if by == {name} and one not in given)
        return own - sum(one.nbytes() for one in given if one not in self._savers)


def _followed(found: Network, counted: Callable[[], int]) -> _Followed:
    inputs = found.inputs(1, found.tokens and found.denoiser.train_text)
    seen = _Followed(found, inputs, counted)
    with checkpointing.visited(found.denoiser.unet, seen.visit), saved_tensors_hooks(seen.save, _never):
        found.denoiser(*inputs)
    return seen


def _never(_: object) -> torch.Tensor:
    raise AssertionError("there is no backward pass")
