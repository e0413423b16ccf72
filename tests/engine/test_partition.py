from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.engine.partition import Partition, Piece, cut_out, dense, named, owned


def test_a_partition_is_a_live_view_with_fixed_places() -> None:
    flat = torch.arange(6.0)
    pieces = (Piece(local=0, start=2, length=2), Piece(local=2, start=5, length=1))
    partition = Partition(layout=dense([("a", (2, 3))]), pieces=pieces, masters=(flat[2:4], flat[5:]))
    for master in partition.masters:
        master.add_(1)
    assert flat.tolist() == [0, 1, 3, 4, 4, 6]
    assert (partition.total, partition.length) == (6, 3)
    assert [part.tolist() for part in partition.split(torch.tensor([7.0, 8.0, 9.0]))] == [[7.0, 8.0], [9.0]]
    with pytest.raises(FrozenInstanceError):
        partition.pieces = ()  # type: ignore[misc]


def test_named_gives_views_in_shape() -> None:
    flat = torch.arange(7.0)
    weights = named(dense([("a", (2, 2)), ("b", (3,))]), flat)
    weights["b"].zero_()
    assert flat.tolist() == [0, 1, 2, 3, 0, 0, 0]
    assert weights["a"].tolist() == [[0, 1], [2, 3]]


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), ranks=st.integers(1, 5), data=st.data())
def test_the_ranks_own_each_element_once(sizes: list[int], ranks: int, data: st.DataObject) -> None:
    layout = dense((str(number), (size,)) for number, size in enumerate(sizes))
    total = sum(sizes)
    # another vector holds the parameters in another order, and is padded at its end
    order = data.draw(st.permutations(range(len(sizes))))
    offsets, at = [0] * len(sizes), 0
    for number in order:
        offsets[number], at = at, at + sizes[number]
    flat, other = torch.arange(total), torch.full((total + ranks,), -1)
    for placed, offset in zip(layout, offsets, strict=True):
        other[offset : offset + placed.size] = flat[placed.offset : placed.offset + placed.size]
    share, found = -(-total // ranks), torch.full((total,), -1)
    for rank in range(ranks):
        local = other[rank * share : (rank + 1) * share]
        for piece in owned(layout, offsets, rank * share, (rank + 1) * share):
            assert found[piece.start : piece.start + piece.length].eq(-1).all()
            found[piece.start : piece.start + piece.length] = local[piece.local : piece.local + piece.length]
    assert torch.equal(found, flat)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
def test_a_part_of_a_vector_has_what_lies_in_it(lengths: list[int], first: int, second: int, gap: int) -> None:
    pieces, local, start = [], 0, 500
    for length in lengths:
        pieces.append(Piece(local=local, start=start, length=length))
        local, start = local + length + gap, start + length + 1
    low, high = min(first, second), max(first, second)
    where = {piece.local + one: piece.start + one for piece in pieces for one in range(piece.length)}
    found = cut_out(pieces, slice(low, high))
    told = {piece.local + one: piece.start + one for piece in found for one in range(piece.length)}
    assert told == {at - low: value for at, value in where.items() if low <= at < high}
