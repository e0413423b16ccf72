"""A curve of any length in bounded memory, thinned so that a picture of it stays the same. Pure.

Neighbouring readings share a bucket, all buckets have as many, and of each the first, lowest, highest and last reading
are kept (M4: Jugel et al., "M4: a visualization-oriented time series data aggregation", VLDB 2014), so that no spike is
lost; beside them its mean, for a smooth line.
"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

BUCKETS: Final = 250  # at most, with up to four readings each
_SMOOTHED: Final = 0.04  # share of the curve whose mean is a point of the smooth line

Point = tuple[float, float]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Readings beside each other."""

    count: int
    middle: Point  # means of both coordinates
    kept: tuple[Point, ...]  # in their order: the first, lowest, highest and last, each once


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What is kept of the readings of one tag."""

    buckets: tuple[Bucket, ...] = ()
    broken: int = 0  # readings that were infinite or no number, and are left out

    @property
    def count(self) -> int:
        """Readings that it stands for."""
        return sum(bucket.count for bucket in self.buckets)

    @property
    def points(self) -> tuple[Point, ...]:
        """(images seen, value) of those that are kept; of a short curve, all."""
        return tuple(point for bucket in self.buckets for point in bucket.kept)

    @property
    def mean(self) -> float:
        """Of all readings; there must be one."""
        return sum(bucket.count * bucket.middle[1] for bucket in self.buckets) / self.count

    @property
    def highest(self) -> float:
        """Of all readings; there must be one."""
        return max(value for _, value in self.points)


class Thinner:
    """Takes a curve's readings, in their order."""

    def __init__(self) -> None:
        self._buckets: list[Bucket] = []
        self._width = 1  # readings of a bucket
        self._places, self._values = np.empty(0), np.empty(0)  # of the bucket that is not full
        self._broken = 0

    def add(self, places: Vector, values: Vector) -> None:
        """The next readings; no place is below the one before. How many come at once changes nothing."""
        sound = np.isfinite(values)
        self._broken += len(values) - int(np.count_nonzero(sound))
        places = np.concatenate((self._places, places[sound]))
        values = np.concatenate((self._values, values[sound]))
        done = 0
        while done + self._width <= len(values):
            until = done + self._width
            self._close(places[done:until], values[done:until])
            done = until
        self._places, self._values = places[done:].copy(), values[done:].copy()

    def _close(self, places: Vector, values: Vector) -> None:
        self._buckets.append(_bucket(places, values))
        if len(self._buckets) == BUCKETS:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
            self._buckets = [_joined(*pair) for pair in pairs]
            self._width *= 2

    def curve(self) -> Curve:
        """Of all readings so far."""
        rest = [_bucket(self._places, self._values)] if len(self._values) else []
        return Curve(buckets=(*self._buckets, *rest), broken=self._broken)


def smooth(curve: Curve) -> tuple[Point, ...]:
    """A running mean of the readings around each bucket, of as many on either side; at the two ends of fewer."""
    widest = max(1, round(len(curve.buckets) * _SMOOTHED / 2))
    sums = [0.0, *accumulate(bucket.count * bucket.middle[1] for bucket in curve.buckets)]
    counts = [0, *accumulate(bucket.count for bucket in curve.buckets)]
    found = []
    for index, bucket in enumerate(curve.buckets):
        reach = min(widest, index, len(curve.buckets) - 1 - index)
        low, high = index - reach, index + reach + 1
        found.append((bucket.middle[0], (sums[high] - sums[low]) / (counts[high] - counts[low])))
    return tuple(found)


def band(curve: Curve, errors: Curve) -> tuple[tuple[float, float, float], ...]:
    """(images seen, low, high): means of `curve` less and plus `errors`, where both have readings."""
    places = [bucket.middle[0] for bucket in errors.buckets]
    found = []
    for bucket in curve.buckets if places else ():
        place, value = bucket.middle
        near = errors.buckets[min(bisect_left(places, place), len(places) - 1)]
        found.append((place, value - near.middle[1], value + near.middle[1]))
    return tuple(found)


def _bucket(places: Vector, values: Vector) -> Bucket:
    chosen = sorted({0, int(values.argmin()), int(values.argmax()), len(values) - 1})
    kept = tuple((float(places[at]), float(values[at])) for at in chosen)
    return Bucket(count=len(values), middle=(_mean(places), _mean(values)), kept=kept)


def _mean(values: Vector) -> float:
    """Summed one after another, on every machine alike: numpy's own sum is in an order that depends on it."""
    with np.errstate(over="ignore"):
        return float(np.add.accumulate(values)[-1]) / len(values)


def _joined(one: Bucket, other: Bucket) -> Bucket:
    count = one.count + other.count
    share = one.count / count
    x, y = (share * a + (1 - share) * b for a, b in zip(one.middle, other.middle, strict=True))
    kept = [*one.kept, *other.kept]
    values = [value for _, value in kept]
    places = {0, values.index(min(values)), values.index(max(values)), len(values) - 1}
    return Bucket(count=count, middle=(x, y), kept=tuple(kept[place] for place in sorted(places)))
