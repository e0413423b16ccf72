from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.data.shares import WHOLE, Shares, shares_of

WEIGHTS = st.one_of(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.lists(st.integers(1, WHOLE // 12), min_size=1, max_size=12),
    st.integers(1, 39).map(lambda depth: [2**power for power in range(depth)]),  # the deepest tree
).map(tuple)


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(0, 10**13), st.integers(0, 300))
def test_draws_and_counts_are_one_sequence(weights: tuple[int, ...], start: int, count: int) -> None:
    shares = Shares(weights)
    members, turns = shares.draws(start, count)
    counts = shares.counts(start)
    assert sum(counts) == start
    for member, turn in zip(members.tolist(), turns.tolist(), strict=True):
        assert turn == counts[member]
        counts[member] += 1
    assert counts == shares.counts(start + count)


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(0, 10**13))
def test_every_count_stays_within_two_of_its_share(weights: tuple[int, ...], draws: int) -> None:
    for count, weight in zip(Shares(weights).counts(draws), weights, strict=True):
        assert abs(count - Fraction(draws * weight, sum(weights))) < 2


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(0, 10**13))
def test_the_draw_of_a_turn_is_found_again(weights: tuple[int, ...], start: int) -> None:
    shares = Shares(weights)
    members, turns = shares.draws(start, 20)
    found = [shares.draw_of(member, turn) for member, turn in zip(members.tolist(), turns.tolist(), strict=True)]
    assert found == list(range(start, start + 20))


def test_after_a_whole_period_the_counts_are_the_weights() -> None:
    assert Shares((3, 5, 9)).counts(17) == [3, 5, 9]
    assert Shares((3, 5, 9)).counts(17 * 10**6) == [3 * 10**6, 5 * 10**6, 9 * 10**6]


def test_a_member_is_not_drawn_in_blocks() -> None:
    members, _ = Shares((1, 3)).draws(0, 400)
    assert int(np.diff(np.flatnonzero(members == 0)).max()) <= 4


def test_only_ratios_matter() -> None:
    assert shares_of((2, 4)) is shares_of((50, 100))


def test_the_sequence_is_pinned() -> None:
    # A change here changes the order of every mixture and every bucketed run.
    assert Shares((1, 2, 4)).draws(0, 14)[0].tolist() == [2, 1, 2, 0, 2, 1, 2, 2, 1, 2, 0, 2, 1, 2]


@pytest.mark.parametrize("weights", [(), (0, 1), (WHOLE, 1)])
def test_weights_that_the_arithmetic_does_not_hold(weights: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="weights"):
        Shares(weights)
