"""How many would be kept if a threshold lay elsewhere, all other rules unchanged.

For the metadata's scores that is counted while the rules are: by steps of a score's known scale, over all rows. For our
own scores it is counted exactly, over the stored samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bigdiff.prep.rules import Bound, Rule

# The step of a threshold and the end of the scale, which begins at 0.
_SCALES: Final = {
    "aesthetic": (0.05, 10.0),
    "pwatermark": (0.01, 1.0),
    "punsafe": (0.01, 1.0),
    "similarity": (0.01, 1.0),
}
BINS: Final = 40
_FAR: Final = 10_000  # steps
_SHORT: Final = 1e-9  # what rounding may take from a value on a step


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One rule's threshold, moved."""

    rule: str
    score: str
    comparison: str  # ">", ">=", "<" or "<="
    threshold: float
    at: tuple[float, ...]  # thresholds, rising
    kept: tuple[int, ...]  # rows that would be kept with each
    chosen: int  # rows that are kept with `threshold`
    rows: int  # all of them, whatever any rule says


def is_swept(rule: Rule) -> bool:
    """Whether `select` moves this rule's threshold."""
    return rule.bound is not None and rule.bound.column in _SCALES


def steps_sql(score: str) -> str:
    """An aggregate {step: rows}; what lies far beyond the scale counts as the last step that is held."""
    step, _ = _SCALES[score]
    place = f"floor({score} / {step!r} + {_SHORT!r})"
    # the filter, because `greatest` and `least` pass over what is null
    return f"histogram(least(greatest({place}, -{_FAR}), {_FAR})::SMALLINT) FILTER ({score} IS NOT NULL)"


def bars(score: str, counts: Mapping[int, int]) -> tuple[float, float, tuple[int, ...]]:
    """The ends of a histogram of about BINS bins, each of as many whole steps, and the rows of each bin."""
    step, _ = _SCALES[score]
    wide = math.ceil((max(counts) - min(counts) + 1) / BINS)
    first = min(counts) // wide
    held = [0] * (max(counts) // wide - first + 1)
    for place, count in counts.items():
        held[place // wide - first] += count
    return round(first * wide * step, 6), round((first + len(held)) * wide * step, 6), tuple(held)


def of_steps(rule: Rule, counts: Mapping[int, int], chosen: int, rows: int) -> Sweep | None:
    """The sweep of a rule from the steps of the rows that no other rule refuses; None where none has the score."""
    if not counts:
        return None
    assert rule.bound is not None
    bound, (step, end) = rule.bound, _SCALES[rule.bound.column]
    first, last = max(min(counts), 0), min(max(counts) + 1, round(end / step))
    first, last = min(first, math.floor(bound.value / step)), max(last, math.ceil(bound.value / step))
    places = range(first, last + 1)
    over = bound.comparison.startswith(">")
    kept = [sum(count for at, count in counts.items() if (at >= place) == over) for place in places]
    return Sweep(
        rule=rule.name,
        score=bound.column,
        comparison=bound.comparison,
        threshold=bound.value,
        at=tuple(round(place * step, 6) for place in places),
        kept=tuple(kept),
        chosen=chosen,
        rows=rows,
    )


def kept_sql(rules: Sequence[Rule], number: int, at: Sequence[float]) -> str:
    """SQL for what is kept of the table `facts` with the threshold of rule `number` at each of `at`, then as chosen.

    What was taken down is not counted; it goes before any rule.
    """
    bound = rules[number].bound
    assert bound is not None
    others = " AND ".join(rule.sql for place, rule in enumerate(rules) if place != number) or "TRUE"
    score = f"{bound.column}::DOUBLE"
    moved = ", ".join(
        f"count(*) FILTER (isfinite({score}) AND {score} {bound.comparison} {value!r}::DOUBLE)" for value in at
    )
    return (
        f"SELECT {moved}, count(*) FILTER ({rules[number].sql}) FROM facts "
        f"WHERE step IS DISTINCT FROM 'takedown' AND {others}"
    )


def of_counts(rule: Rule, at: Sequence[float], counts: Sequence[int], rows: int) -> Sweep:
    """The sweep of a rule from the answer to `kept_sql`; `rows`: all stored samples."""
    bound: Bound | None = rule.bound
    assert bound is not None
    return Sweep(
        rule=rule.name,
        score=bound.column,
        comparison=bound.comparison,
        threshold=bound.value,
        at=tuple(at),
        kept=tuple(counts[:-1]),
        chosen=counts[-1],
        rows=rows,
    )
