"""Which `engine.bucket_elements` leaves the least of a step's collectives beside nothing, by the model of plan.scaling.

Small buckets leave a short tail behind the last gradient, large ones pay few latencies. Nothing chooses while a run is
on: it knows no seconds of a backward pass when it starts, and on more than two ranks another bucket is another order of
the ring's sums, so that what is measured at the start would decide how a resume rounds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bigdiff.config.schema import Stage
from bigdiff.plan.scaling import Machine, predict
from bigdiff.train.memory import Weights
from bigdiff.train.volumes import shares


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A size of bucket, and what it leaves."""

    elements: int
    exposed: float  # seconds a step of all collectives that nothing hides


def best(stage: Stage, weights: Weights, ranks: int, machine: Machine) -> Bucket | None:
    """The size with the least exposed, of those the smallest; None where none has an effect: one rank, or ZeRO-0.

    None is smaller than the largest parameter: gradients are not cut, and the model's buckets are of one size. For each
    number of buckets the model knows one time, so that all of them are tried.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    if ranks == 1 or stage.engine.zero_stage == 0:
        return None
    found = (of(stage, weights, ranks, machine, size) for size in sizes(stage.engine.zero_stage, weights, ranks))
    return min(found, key=lambda one: (one.exposed, one.elements))


def of(stage: Stage, weights: Weights, ranks: int, machine: Machine, elements: int) -> Bucket:
    """Buckets of `elements` in place of the stage's own.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    engine = replace(stage.engine, bucket_elements=elements)
    return Bucket(elements=elements, exposed=predict(replace(stage, engine=engine), weights, ranks, machine).exposed)


def sizes(zero_stage: int, weights: Weights, ranks: int) -> Iterator[int]:
    """A size for each number of buckets, from one on, none below the largest parameter; even, as the engine's are."""
    total = shares(weights.sizes, ranks) * ranks if zero_stage == 3 else weights.total
    largest = max(weights.sizes)
    for count in range(1, math.ceil(total / largest) + 1):
        yield _short(max(math.ceil(total / count), largest), total)


def _short(least: int, total: int) -> int:
    """The number of the fewest digits, from `least` on, that makes as few buckets of `total` as `least` does."""
    for digits in range(len(str(least)) - 1, 0, -1):
        unit = int(10**digits)
        size = math.ceil(least / unit) * unit
        if math.ceil(total / size) == math.ceil(total / least):
            return size
    return least + least % 2
