"""Moving averages of flat weight partitions: each rank averages what it owns, 4 bytes x parameters / ranks apiece."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from bigdiff.config import averages
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Ema
from bigdiff.models import posthoc

CHUNK: Final = 1 << 22  # elements that `squares` looks at together, so that it needs little memory
Parts = tuple[torch.Tensor, ...]


def effective_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after `updates` = n earlier updates: the warm-up of the original SD code."""
    return min(decay, (1 + updates) / (10 + updates))


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """How fast an average forgets: by a constant decay, or by the exponent of a power function."""

    decay: float = 0.0
    gamma: float = 0.0  # > 0: a power function, and no decay

    def kept(self, updates: int) -> float:
        """Share of the old average after `updates` earlier updates."""
        return posthoc.kept(self.gamma, updates + 1) if self.gamma else effective_decay(self.decay, updates)


def profiles(ema: Ema) -> dict[str, Profile]:
    """The averages of a stage by name, the default one first."""
    constant = {averages.decay_name(decay): Profile(decay=decay) for decay in ema.decays}
    power = {averages.power_name(width): Profile(gamma=posthoc.exponent(width)) for width in ema.power}
    return constant | power


class Averages:
    """All averages of what this rank owns; `tensors` are aligned with the masters (bigdiff.engine.partition)."""

    def __init__(self, masters: Sequence[torch.Tensor], ema: Ema) -> None:
        self.profiles = profiles(ema)
        self.tensors: dict[str, Parts] = {name: _copies(masters) for name in self.profiles}
        # updates of the run before each began; less than 0 when it goes on from another run
        self.began = dict.fromkeys(self.profiles, 0)

    @property
    def power(self) -> dict[str, Parts]:
        """Those of power functions."""
        return {name: parts for name, parts in self.tensors.items() if self.profiles[name].gamma}

    @torch.no_grad()
    def update(self, masters: Sequence[torch.Tensor], updates: int) -> None:
        """Move each average towards the weights, after `updates` earlier updates of the run.

        One pass over memory apiece, 12 bytes a weight. Not to be called for a step that moved no weights.
        """
        weights = [master.detach() for master in masters]
        for name, profile in self.profiles.items():
            moved = 1.0 - profile.kept(updates - self.began[name])
            torch._foreach_lerp_(self.tensors[name], weights, moved)

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Parts], began: Mapping[str, int], masters: Parts, updates: int) -> list[str]:
        """Put back what a checkpoint holds after `updates` updates of the run; gives sentences on what differs.

        `began` names all averages of the checkpoint, `saved` has at least those that this stage tracks, too.
        A constant decay that the checkpoint does not hold begins at the masters, with its own warm-up.

        Raises:
            UsageError: for a power function added to others: their profiles would not begin at the same update, so that
                no width could be reconstructed from both.
        """
        missing = [name for name in self.profiles if name not in saved]
        others = [name for name in began if name.startswith("power/")]
        late = next((name for name in missing if self.profiles[name].gamma and others), "")
        if late:
            raise UsageError(
                f"ema.power: the checkpoint holds {', '.join(others)} but not {late}, which can only begin with them: "
                f"leave it out, any width in between is reconstructed"
            )
        for name, shadow in self.tensors.items():
            source = masters if name in missing else saved[name]
            for mine, theirs in zip(shadow, source, strict=True):
                mine.copy_(theirs)
            self.began[name] = updates if name in missing else began[name]
        new = [
            f"{name} is not in the checkpoint and begins anew at the weights of update {updates}" for name in missing
        ]
        return new + [
            f"{name} of the checkpoint is not among ema.decays and ema.power any more and ends here"
            for name in began
            if name not in self.profiles
        ]


def _copies(masters: Sequence[torch.Tensor]) -> Parts:
    return tuple(master.detach().clone() for master in masters)


@torch.no_grad()
def squares(averaged: Mapping[str, Parts], masters: Parts, ranges: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Sums of squares over what this rank owns, fp32 [1 + n]: of the masters, then of each average minus them.

    `ranges` [begin, end) of the masters end to end are counted: what lies between them is padding, of any value.
    """
    sums = torch.zeros(1 + len(averaged), device=masters[0].device)
    apart = torch.empty(CHUNK, device=masters[0].device)
    for number, begin, end in _spans([len(master) for master in masters], ranges):
        master, difference = masters[number][begin:end], apart[: end - begin]
        sums[0] += torch.dot(master, master)
        for place, parts in enumerate(averaged.values(), 1):
            torch.sub(parts[number][begin:end], master, out=difference)
            sums[place] += torch.dot(difference, difference)
    return sums


def _spans(lengths: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Ranges of tensors of `lengths` end to end as (tensor, begin, end) within it, at most CHUNK elements each."""
    start = 0
    for number, length in enumerate(lengths):
        for begin, end in ranges:
            low, high = max(begin - start, 0), min(end - start, length)
            yield from ((number, at, min(at + CHUNK, high)) for at in range(low, high, CHUNK))
        start += length


def distances(names: Sequence[str], sums: torch.Tensor) -> dict[str, float]:
    """L2 distance of each average from the weights, relative to their norm, from all ranks' `squares` together.

    `sums` may be their sum or their mean over the ranks: the ratio is the same.
    """
    whole, *apart = sums.double().tolist()
    return {name: (one / whole) ** 0.5 if whole else 0.0 for name, one in zip(names, apart, strict=True)}
