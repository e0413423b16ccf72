"""Histograms and curves as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bigdiff.prep.page import Markup, number

_WIDTH: Final = 420
_HEIGHT: Final = 130
_BASE: Final = 150  # y of the axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A threshold."""

    value: float
    below: bool  # the rule keeps what lies below it


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """A histogram: bins of equal width from `low` to `high`."""

    name: str
    low: float
    high: float
    counts: tuple[int, ...]
    said: str  # below it: of how many, how many lie outside
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Shares against a threshold, and the one that was chosen."""

    name: str
    points: tuple[tuple[float, float], ...]  # (threshold, share from 0 to 1), rising thresholds
    chosen: tuple[float, float]


def histogram(drawn: Bars) -> Markup:
    """Bars; what a threshold refuses is pale."""
    tallest = max(drawn.counts) or 1
    step = _WIDTH / len(drawn.counts)
    span = (drawn.high - drawn.low) or 1.0
    bars = []
    for index, count in enumerate(drawn.counts):
        height = max(count / tallest * _HEIGHT, 1.0) if count else 0.0
        middle = drawn.low + (index + 0.5) / len(drawn.counts) * span
        refused = any((middle >= mark.value) == mark.below for mark in drawn.marks)
        bars.append(
            f'<rect x="{index * step + 0.5:.2f}" y="{_BASE - height:.2f}" width="{step - 1:.2f}" '
            f'height="{height:.2f}" class="{"off" if refused else "on"}"/>'
        )
    marks = [_mark((mark.value - drawn.low) / span, number(mark.value)) for mark in drawn.marks]
    return _figure(f"histogram of {drawn.name}", [*bars, *_axis(drawn.low, drawn.high), *marks], drawn.name, drawn.said)


def curve(drawn: Curve, said: str) -> Markup:
    """A line of shares; the chosen threshold is marked."""
    low, high = drawn.points[0][0], drawn.points[-1][0]
    span = (high - low) or 1.0
    top = _top([*(share for _, share in drawn.points), drawn.chosen[1]])

    def place(at: float, share: float) -> tuple[float, float]:
        return (at - low) / span * _WIDTH, _BASE - share / top * _HEIGHT

    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in (place(*point) for point in drawn.points))
    parts = [
        f'<line x1="0" y1="{_BASE - _HEIGHT}" x2="{_WIDTH}" y2="{_BASE - _HEIGHT}" class="axis"/>',
        f'<polyline points="{line}"/>',
        *_axis(low, high),
    ]
    at, share = drawn.chosen
    left = at > low + span / 2  # the scale's end stands where the mark's label does not
    anchor = 'x="0"' if left else f'x="{_WIDTH}" text-anchor="end"'
    parts.append(f'<text {anchor} y="{_BASE - _HEIGHT - 5}">{100 * top:g}%</text>')
    if low <= at <= high:
        x, y = place(at, share)
        parts += [
            _mark((at - low) / span, f"{number(at)}: {share:.1%}"),
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.5" class="mark"/>',
        ]
    return _figure(f"share kept against {drawn.name}", parts, drawn.name, said)


def _top(shares: Sequence[float]) -> float:
    """The end of the scale: a round share at or above all of `shares`."""
    highest = max(shares)
    return next((top for top in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if highest <= top), 1.0)


def _axis(low: float, high: float) -> list[str]:
    return [
        f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}" class="axis"/>',
        f'<text x="0" y="{_BASE + 16}">{number(low)}</text>',
        f'<text x="{_WIDTH}" y="{_BASE + 16}" text-anchor="end">{number(high)}</text>',
    ]


def _mark(at: float, label: str) -> str:
    """A dashed line at the share `at` of the width, labelled on the side that has room."""
    if not 0 <= at <= 1:
        return ""
    x, right = at * _WIDTH, at > 0.5
    return (
        f'<line x1="{x:.2f}" y1="4" x2="{x:.2f}" y2="{_BASE}" class="mark"/>'
        f'<text x="{x + (-5 if right else 5):.2f}" y="14" class="mark" '
        f'text-anchor="{"end" if right else "start"}">{label}</text>'
    )


def _figure(label: str, parts: Sequence[str], name: str, said: str) -> Markup:
    return Markup(
        f'<figure><svg viewBox="0 0 {_WIDTH} {_BASE + 22}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg><figcaption><b>{escape(name)}</b>{escape(said)}</figcaption></figure>"
    )
