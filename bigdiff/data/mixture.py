"""Weighted sources: what each gives, for how long, and the shares that follow for its cells.

A cell is the shards of one source that are in one bucket. Shares are exact fractions of what the user wrote.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, gcd, isfinite, lcm

import numpy as np

from bigdiff.config.errors import UsageError
from bigdiff.data.shares import WHOLE, Ints

_DENOMINATOR = 10**6  # a proportion is a number with few digits, or 1/3 as a float


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A shard set in a mixture.

    Sources with a `proportion` have that share of the samples; the others split the rest by their samples times
    `upsample`. When a source ends (by `repeat` or `until`) the same rule holds for those that are left.
    """

    name: str  # as the user knows it, for messages
    sizes: Ints  # samples of each shard
    buckets: tuple[str, ...] = ()  # of each shard; empty: all are of one
    proportion: float | None = None  # share of the run's samples, in (0, 1]
    upsample: float = 1.0  # factor on its natural share
    repeat: float | None = None  # passes after which it gives nothing more
    until: int | None = None  # samples_seen of the run from which on it gives nothing
    samples: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", np.asarray(self.sizes, np.int64))
        object.__setattr__(self, "samples", int(self.sizes.sum()))
        assert not self.buckets or len(self.buckets) == len(self.sizes), "a bucket for each shard"

    @property
    def share(self) -> Fraction | None:
        """The proportion as the fraction that was meant."""
        return None if self.proportion is None else Fraction(self.proportion).limit_denominator(_DENOMINATOR)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Cell:
    """The shards of one source in one bucket, which are drawn in an order of their own."""

    source: int
    bucket: str
    shards: Ints  # numbers in the source, ascending
    sizes: Ints
    samples: int
    limit: int | None  # samples after which it ends, from the source's `repeat`


def cells(sources: tuple[Source, ...]) -> tuple[Cell, ...]:
    """The cells of a mixture, by source and then by name of the bucket; those without samples are left out."""
    found = []
    for number, source in enumerate(sources):
        repeat = None if source.repeat is None else Fraction(source.repeat).limit_denominator(_DENOMINATOR)
        for bucket, shards in _by_bucket(source).items():
            sizes = source.sizes[shards]
            samples = int(sizes.sum())
            limit = None if repeat is None else ceil(repeat * samples)
            if samples:
                found.append(
                    Cell(source=number, bucket=bucket, shards=shards, sizes=sizes, samples=samples, limit=limit)
                )
    return tuple(found)


def _by_bucket(source: Source) -> dict[str, Ints]:
    names = sorted(set(source.buckets))
    if len(names) < 2:
        return {names[0] if names else "": np.arange(len(source.sizes), dtype=np.int64)}
    number = {name: place for place, name in enumerate(names)}
    codes = np.fromiter((number[name] for name in source.buckets), np.int64, len(source.buckets))
    ordered = np.argsort(codes, kind="stable")
    return dict(zip(names, np.split(ordered, np.searchsorted(codes[ordered], np.arange(1, len(names)))), strict=True))


def weights(sources: tuple[Source, ...], active: list[Cell]) -> tuple[int, ...]:
    """Whole weights of the active cells: source's share, split over its active cells by their samples.

    Exact when the common denominator is at most 2**40, else the largest remainders of 2**40.

    Raises:
        UsageError: for a share that is so small that its weight would be zero.
    """
    held: dict[int, int] = {}
    for cell in active:
        held[cell.source] = held.get(cell.source, 0) + cell.samples
    shares = _shares(sources, held.keys())
    exact = [shares[cell.source] * Fraction(cell.samples, held[cell.source]) for cell in active]
    common = lcm(*(share.denominator for share in exact))
    whole = [int(share * common) for share in exact]
    if sum(whole) // gcd(*whole) > WHOLE:
        whole = _rounded(exact)
    for cell, weight in zip(active, whole, strict=True):
        if not weight:
            raise UsageError(
                f"{sources[cell.source].name}: its share of the samples is so small that bucket {cell.bucket!r} would "
                f"never be drawn; give the source a larger proportion or upsample"
            )
    return tuple(whole)


def _shares(sources: tuple[Source, ...], active: Collection[int]) -> dict[int, Fraction]:
    fixed = {number: share for number in active if (share := sources[number].share) is not None}
    rest = 1 - sum(fixed.values(), Fraction(0))
    natural = {
        number: sources[number].samples * Fraction(sources[number].upsample).limit_denominator(_DENOMINATOR)
        for number in active
        if number not in fixed
    }
    if natural:
        whole = sum(natural.values(), Fraction(0))
        return {**fixed, **{number: rest * size / whole for number, size in natural.items()}}
    return {number: share / (1 - rest) for number, share in fixed.items()}


def _rounded(shares: list[Fraction]) -> list[int]:
    floors = [int(share * WHOLE) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda place: (floors[place] - shares[place] * WHOLE, place))
    for place in remainders[: WHOLE - sum(floors)]:
        floors[place] += 1
    return floors


def check(sources: tuple[Source, ...]) -> None:
    """Refuse shares that cannot be given or have no effect.

    Raises:
        UsageError: naming the source and the setting.
    """
    if not sources:
        raise UsageError("no source is given: name at least one shard set")
    for source in sources:
        _check_one(source)
    given = [source.share for source in sources if source.share is not None]
    others = [source for source in sources if source.share is None]
    total = sum(given, Fraction(0))
    if total > 1:
        raise UsageError(f"the sources' proportions add up to {float(total):g}, which is over 1: lower them")
    if others and total == 1:
        raise UsageError(
            f"{others[0].name} has no proportion and the others' add up to 1, so nothing is left for it: lower theirs"
        )
    if not others and total < 1:
        raise UsageError(
            f"the sources' proportions add up to {float(total):g}, not 1: raise them, or leave one out to give that "
            f"source the rest"
        )
    if len(others) == 1 and others[0].upsample != 1:
        raise UsageError(
            f"{others[0].name}: upsample has no effect, as no other source without a proportion shares the rest with "
            f"it: leave it out"
        )


def _check_one(source: Source) -> None:
    name = source.name
    if not source.samples:
        raise UsageError(f"{name} has no samples: rebuild the shard set or leave it out")
    for key, value in (("proportion", source.proportion), ("upsample", source.upsample), ("repeat", source.repeat)):
        if value is not None and not isfinite(value):
            raise UsageError(f"{name}: {key} is {value}, it must be a finite number")
    if source.share is not None and not 0 < source.share <= 1:
        raise UsageError(f"{name}: proportion is {source.proportion}, it must be in (0, 1] and at least 1e-6")
    if source.upsample != 1 and source.proportion is not None:
        raise UsageError(f"{name}: upsample has no effect beside a proportion: leave one of them out")
    if Fraction(source.upsample).limit_denominator(_DENOMINATOR) <= 0:
        raise UsageError(f"{name}: upsample is {source.upsample}, it must be at least 1e-6")
    if source.repeat is not None and Fraction(source.repeat).limit_denominator(_DENOMINATOR) <= 0:
        raise UsageError(f"{name}: repeat is {source.repeat}, it must be above 0 (passes over the source)")
    if source.until is not None and source.until <= 0:
        raise UsageError(f"{name}: until is {source.until}, so it would give nothing: raise it or leave the source out")
