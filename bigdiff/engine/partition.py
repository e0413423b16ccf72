"""How the trained weights form one flat vector, and which ranges of it a rank owns.

The flat vector is canonical: the parameters in their given order, dense, without padding, whatever the ZeRO stage and
the number of ranks. So what one world saved, any other finds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where one parameter lies in the flat vector of the trained weights (elements)."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Its elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Elements [local, local + length) of a rank's own vector are [start, start + length) of the flat one."""

    local: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """What this rank owns; `masters`, seen end to end, are its local vector, in which no piece covers the padding.

    All that is kept per weight (AdamW's moments, averages) comes as tensors aligned with `masters`.
    """

    layout: tuple[Placed, ...]
    pieces: tuple[Piece, ...]
    masters: tuple[torch.Tensor, ...]  # flat fp32, live: writing to them changes the optimizer's weights

    @property
    def total(self) -> int:
        """Elements of the flat vector."""
        return self.layout[-1].offset + self.layout[-1].size

    @property
    def length(self) -> int:
        """Elements of this rank's local vector, padding included."""
        return sum(master.numel() for master in self.masters)

    def split(self, local: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A local vector [length] as tensors aligned with `masters`, sharing its memory."""
        return torch.split(local, [master.numel() for master in self.masters])


def dense(shapes: Iterable[tuple[str, Sequence[int]]]) -> tuple[Placed, ...]:
    """The canonical layout of named shapes in their order."""
    layout, offset = [], 0
    for name, shape in shapes:
        layout.append(Placed(name=name, shape=tuple(shape), offset=offset))
        offset += layout[-1].size
    return tuple(layout)


def owned(layout: Sequence[Placed], offsets: Sequence[int], low: int, high: int) -> tuple[Piece, ...]:
    """The pieces of a rank that owns [low, high) of a vector in which the parameters lie at `offsets`."""
    pieces: list[Piece] = []
    for placed, offset in sorted(zip(layout, offsets, strict=True), key=lambda pair: pair[1]):
        begin, end = max(low, offset), min(high, offset + placed.size)
        if begin < end:
            pieces.append(Piece(local=begin - low, start=placed.offset + begin - offset, length=end - begin))
    return tuple(merged(pieces))


def cut_out(pieces: Iterable[Piece], part: slice) -> tuple[Piece, ...]:
    """The pieces of a part of a local vector, counted from its beginning."""
    found = []
    for piece in pieces:
        begin, end = max(piece.local, part.start), min(piece.local + piece.length, part.stop)
        if begin < end:
            start = piece.start + begin - piece.local
            found.append(Piece(local=begin - part.start, start=start, length=end - begin))
    return tuple(found)


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces, ascending in `local`, with neighbours on both sides joined."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and (last.local + last.length, last.start + last.length) == (piece.local, piece.start):
            found[-1] = Piece(local=last.local, start=last.start, length=last.length + piece.length)
        else:
            found.append(piece)
    return found


def named(layout: Iterable[Placed], flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parameters of a flat vector by name, as views of it."""
    return {one.name: flat[one.offset : one.offset + one.size].reshape(one.shape) for one in layout}
