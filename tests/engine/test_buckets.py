"""Buckets and shares: laws over random networks and numbers of ranks."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bigdiff.engine.buckets import ALIGN, Buckets, cut
from bigdiff.engine.partition import dense

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=60)
CUT = st.tuples(SIZES, st.integers(1, 20_000), st.integers(1, 9))


@given(CUT)
def test_every_parameter_has_a_place_of_its_own_in_one_bucket(drawn: tuple[list[int], int, int]) -> None:
    sizes, most, ranks = drawn
    found, end = cut(sizes, most, ranks), 0
    assert [number for one in found.buckets for number in one.parameters] == list(range(len(sizes)))
    for one in found.buckets:
        whole = found.whole(one)
        assert whole.start == one.begin == end  # no gap between buckets
        end = whole.stop
        ends = [begin + sizes[number] for number, begin in zip(one.parameters, one.offsets, strict=True)]
        assert one.offsets[0] == whole.start and ends[-1] <= whole.stop
        assert all(first <= second for first, second in zip(ends, one.offsets[1:], strict=False))
        assert all(begin % ALIGN == 0 for begin in one.offsets) and one.share % ALIGN == 0
        assert sum(sizes[number] for number in one.parameters) <= most or len(one.parameters) == 1
    assert end == found.total


@given(CUT)
def test_a_bucket_takes_its_neighbour_where_both_fit(drawn: tuple[list[int], int, int]) -> None:
    sizes, most, ranks = drawn
    held = [[sizes[number] for number in one.parameters] for one in cut(sizes, most, ranks).buckets]
    for first, second in pairwise(held):
        assert sum(first) + second[0] > most


@given(CUT)
def test_the_ranks_pieces_are_the_canonical_vector_once(drawn: tuple[list[int], int, int]) -> None:
    sizes, most, ranks = drawn
    layout = dense((str(number), (size,)) for number, size in enumerate(sizes))
    found = cut(sizes, most, ranks)
    flat = with_gaps(found, sizes)
    told: list[int | None] = [None] * sum(sizes)
    for rank in range(ranks):
        own = [
            value
            for one in found.buckets
            for value in flat[one.begin + rank * one.share : one.begin + (rank + 1) * one.share]
        ]
        assert len(own) == found.own
        covered = [False] * len(own)
        for piece in found.pieces(layout, rank):
            assert not any(told[at] is not None for at in range(piece.start, piece.start + piece.length))
            told[piece.start : piece.start + piece.length] = own[piece.local : piece.local + piece.length]
            covered[piece.local : piece.local + piece.length] = [True] * piece.length
        assert all(value == -1 for value, seen in zip(own, covered, strict=True) if not seen)  # padding alone
    assert told == list(range(sum(sizes)))


def with_gaps(found: Buckets, sizes: list[int]) -> list[int]:
    """The canonical vector 0, 1, 2, ... laid out with gaps of -1."""
    flat, at = [-1] * found.total, 0
    for one in found.buckets:
        for number, begin in zip(one.parameters, one.offsets, strict=True):
            flat[begin : begin + sizes[number]] = range(at, at + sizes[number])
            at += sizes[number]
    return flat
