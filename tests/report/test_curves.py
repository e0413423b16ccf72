import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.report.curves import BUCKETS, Curve, Thinner, _mean, band, smooth

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def thinned(values: Sequence[float]) -> Curve:
    return in_parts(values, [])


def in_parts(values: Sequence[float], cuts: Sequence[int]) -> Curve:
    """Of values that come in parts, cut at these places."""
    thinner, every = Thinner(), np.array(values, np.float64)
    for places, some in zip(np.split(np.arange(len(every)), cuts), np.split(every, cuts), strict=True):
        thinner.add(places.astype(np.float64), some)
    return thinner.curve()


@given(VALUES, st.lists(st.integers(0, 4000), max_size=20))
def test_how_many_come_at_once_changes_nothing(values: list[float], cuts: list[int]) -> None:
    every = [value + place % 7 for place, value in enumerate(values * 100)]
    assert in_parts(every, sorted(cuts)) == in_parts(every, range(1, len(every))) == thinned(every)


def test_means_are_added_up_one_after_another() -> None:
    """So that they are equal on all machines, bit for bit."""
    generator = np.random.default_rng(0)
    sums = [0.0]
    for value in (some := generator.random(10_000)):
        sums.append(sums[-1] + float(value))
    assert _mean(some) == sums[-1] / 10_000


@given(VALUES, st.integers(1, 120))
def test_first_last_lowest_and_highest_stay_and_nothing_is_made_up(values: list[float], times: int) -> None:
    every = [value + place % 7 for place, value in enumerate(values * times)]
    curve = thinned(every)
    readings = list(enumerate(every))
    assert set(curve.points) <= set(readings)
    assert [place for place, _ in curve.points] == sorted({place for place, _ in curve.points})
    assert (curve.points[0], curve.points[-1]) == (readings[0], readings[-1])
    kept = [value for _, value in curve.points]
    assert (min(kept), max(kept), curve.highest) == (min(every), max(every), max(every))
    assert len(curve.points) <= 4 * BUCKETS
    assert curve.count == len(every)
    assert curve.mean == pytest.approx(math.fsum(every) / len(every), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, BUCKETS - 1, BUCKETS, 2 * BUCKETS - 1])
def test_a_short_curve_is_whole(count: int) -> None:
    values = [math.sin(place) for place in range(count)]
    assert thinned(values).points == tuple(enumerate(values))


def test_one_spike_among_a_million_readings_is_drawn() -> None:
    values = [0.0] * 1_000_000
    values[123_457], values[765_432] = 9.0, -9.0
    curve = thinned(values)
    assert {(123_457, 9.0), (765_432, -9.0)} <= set(curve.points)
    assert len(curve.points) <= 4 * BUCKETS and len(curve.buckets) >= BUCKETS // 2


def test_what_is_no_number_is_counted_and_left_out() -> None:
    curve = thinned([1.0, math.nan, math.inf, 2.0])
    assert (curve.points, curve.broken, curve.count) == (((0, 1.0), (3, 2.0)), 2, 2)


@pytest.mark.parametrize("count", [1, 5, 200, 5000])
def test_a_straight_line_is_its_own_running_mean(count: int) -> None:
    curve = thinned([3.0 * place for place in range(count - count % 128 if count > 200 else count)])
    for place, value in smooth(curve):
        assert value == pytest.approx(3.0 * place)


@given(VALUES)
def test_a_running_mean_stays_within_the_readings(values: list[float]) -> None:
    for _, value in smooth(thinned(values * 5)):
        assert min(values) - 1e-6 <= value <= max(values) + 1e-6


def test_errors_stand_around_the_readings_that_they_are_of() -> None:
    assert band(thinned([1.0, 2.0]), thinned([0.1, 0.2])) == ((0, 0.9, 1.1), (1, 1.8, 2.2))
    assert band(thinned([1.0]), Curve()) == ()
    long = band(thinned([5.0] * 1000), thinned([0.5] * 1000))
    assert {(low, high) for _, low, high in long} == {(4.5, 5.5)}
