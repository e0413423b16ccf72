"""Which parameters are reduced and gathered together, and where each of them and each rank's share lies.

The vector is the canonical one (bigdiff.engine.partition) with gaps: a parameter begins at a multiple of ALIGN, and a
bucket, neighbours in the canonical order, is as long as all ranks' equal shares of it. So a bucket is scattered and
gathered by one collective each, and a rank owns a part of every bucket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bigdiff.engine.partition import Piece, Placed, merged, owned

ALIGN: Final = 64  # elements: 128 bytes in bf16, more than any kernel asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Some neighbours; elements, counted in the vector with gaps."""

    parameters: range  # their numbers in the canonical order
    offsets: tuple[int, ...]  # where each of them begins
    begin: int
    share: int  # of each rank: rank r's is [begin + r share, begin + (r + 1) share)
    own: int  # where a rank's share of this bucket begins in its own vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """All of them, without a gap between."""

    buckets: tuple[Bucket, ...]
    ranks: int

    @property
    def total(self) -> int:
        """Elements of the vector with gaps."""
        return self.own * self.ranks

    @property
    def own(self) -> int:
        """Elements of a rank's own vector: its shares of all buckets, one behind the other."""
        return sum(one.share for one in self.buckets)

    def whole(self, bucket: Bucket) -> slice:
        """Where a bucket lies in the vector with gaps."""
        return slice(bucket.begin, bucket.begin + bucket.share * self.ranks)

    def pieces(self, layout: Sequence[Placed], rank: int) -> tuple[Piece, ...]:
        """What a rank's own vector has of the canonical one; the rest of it is padding."""
        found = []
        for one in self.buckets:
            placed = [layout[number] for number in one.parameters]
            low = one.begin + rank * one.share
            for piece in owned(placed, one.offsets, low, low + one.share):
                found.append(Piece(local=one.own + piece.local, start=piece.start, length=piece.length))
        return tuple(merged(found))


def cut(sizes: Sequence[int], most: int, ranks: int) -> Buckets:
    """Buckets of at most so many elements, but for a parameter that has more; it stands alone.

    `sizes` are the parameters' elements in the canonical order.
    """
    groups: list[list[int]] = []
    filled = most
    for number, size in enumerate(sizes):
        if filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += size
    buckets, begin, own = [], 0, 0
    for group in groups:
        offsets, end = [], begin
        for number in group:
            offsets.append(end)
            end += _up(sizes[number], ALIGN)
        share = _up(end - begin, ALIGN * ranks) // ranks
        numbers = range(group[0], group[-1] + 1)
        buckets.append(Bucket(parameters=numbers, offsets=tuple(offsets), begin=begin, share=share, own=own))
        begin, own = begin + share * ranks, own + share
    return Buckets(buckets=tuple(buckets), ranks=ranks)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
