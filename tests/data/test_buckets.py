from collections import Counter
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.data.buckets import BLOCK, Buckets
from bigdiff.data.shares import shares_of

WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=9).map(tuple)


def buckets(weights: tuple[int, ...], seed: int = 0, phase: int = 0) -> Buckets:
    return Buckets(shares=shares_of(weights), seed=seed, phase=phase)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.integers(1, 90))
def test_steps_counts_and_the_inverse_agree(weights: tuple[int, ...], seed: int, start: int, count: int) -> None:
    schedule = buckets(weights, seed)
    counts = schedule.before(start)
    assert sum(counts) == start
    for step in range(start, start + count):
        bucket, turn = schedule.at(step)
        assert turn == counts[bucket]
        assert schedule.step_of(bucket, turn) == step
        assert schedule.block_of(bucket, turn) == step // BLOCK
        counts[bucket] += 1
    assert counts == schedule.before(start + count)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 10**9))
def test_every_bucket_is_within_six_steps_of_its_share(weights: tuple[int, ...], step: int) -> None:
    # less than 2 by the shares, and at most BLOCK / 4 = 4 by the shuffle inside a block
    for count, weight in zip(buckets(weights).before(step), weights, strict=True):
        assert abs(count - Fraction(step * weight, sum(weights))) < 2 + BLOCK // 4


def test_a_bucket_that_is_far_smaller_than_a_batch_comes_up_at_its_rate() -> None:
    schedule = buckets((10**6, 1))
    assert schedule.before(10 * (10**6 + 1)) == [10**7, 10]


def test_equal_buckets_do_not_fall_in_step_with_a_log_line() -> None:
    seen = Counter(buckets((1, 1)).at(step)[0] for step in range(0, 20_000, 50))
    assert min(seen[0], seen[1]) > 150


def test_seed_and_phase_change_the_order_within_blocks_only() -> None:
    def turns(schedule: Buckets) -> list[int]:
        return [schedule.at(step)[0] for step in range(4 * BLOCK)]

    first, other, later = (turns(buckets((2, 3, 4), *key)) for key in ((0, 0), (1, 0), (0, 1)))
    assert first != other and first != later
    for start in range(0, 4 * BLOCK, BLOCK):
        assert sorted(first[start : start + BLOCK]) == sorted(other[start : start + BLOCK])


def test_the_schedule_is_pinned() -> None:
    # A change here changes the order of every bucketed run.
    assert [buckets((1, 2, 4), seed=7).at(step)[0] for step in range(20)] == [
        2,
        1,
        0,
        2,
        2,
        2,
        1,
        1,
        2,
        0,
        1,
        2,
        1,
        2,
        2,
        2,
        2,
        2,
        1,
        0,
    ]
