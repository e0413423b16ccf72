"""Curves over images seen as inline SVG, with scales, a legend and bands of errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from bigdiff.evaluate.curve import ticks
from bigdiff.prep.page import Markup, number
from bigdiff.report.curves import Point

_APART: Final = (
    "#3d82c9",
    "#d1622b",
    "#3a9d5d",
    "#8e5bb5",
    "#c0392b",
    "#1d9aa8",
    "#b0891e",
    "#d0569b",
    "#6b7280",
    "#7a5c3e",
)
_IN_ORDER: Final = tuple(f"hsl({(215 + 18 * step) % 360} 62% 55%)" for step in range(10))  # blue to red
_COLOURS: Final = {f"{kind}{n}": one for kind, own in (("c", _APART), ("t", _IN_ORDER)) for n, one in enumerate(own)}
STYLE: Final = """
svg polyline.pale { stroke: var(--off); stroke-width: 1.2 }
svg line.grid { stroke: var(--line) }
.key { white-space: nowrap; margin-right: .9rem }
.key i { display: inline-block; width: .8rem; height: .2rem; vertical-align: middle; margin-right: .3rem }
.key .pale { background: var(--off) }
""" + "".join(
    f"svg .{name} {{ stroke: {colour}; stroke-width: 1.6 }} svg circle.{name} {{ fill: {colour} }} "
    f"svg polygon.{name} {{ stroke-opacity: .3; fill: {colour}; fill-opacity: .2 }} "
    f".key .{name} {{ background: {colour} }}\n"
    for name, colour in _COLOURS.items()
)
COLOURS: Final = 10  # c0 to c9 tell lines apart, t0 to t9 are an order
_WIDTH: Final = 460
_HEIGHT: Final = 200
_LEFT: Final = 50
_RIGHT: Final = 452
_TOP: Final = 10
_BOTTOM: Final = 176
_FULL: Final = 6  # steps on a scale above which only powers of ten are written
_WIDE: Final = 4.0  # the highest over the lowest, from which "auto" is a logarithmic scale
_FLAT: Final = 1e-9  # relative difference that is of rounding
Scale = Literal["auto", "linear", "zero"]  # logarithmic where values differ much; as they are; from 0
_LETTERS: Final = ("", "k", "M", "G", "T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line, whose last value the legend says; without points it is left out."""

    name: str
    points: Sequence[Point]
    colour: str  # "pale", "c0" to "c9", or "t0" to "t9"
    errors: Sequence[tuple[float, float, float]] = ()  # (images seen, low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Lines that share their scales."""

    name: str
    series: Sequence[Series]
    said: str = ""
    scale: Scale = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    low: float
    high: float
    marks: tuple[float, ...]
    powers: bool  # logarithmic

    def share(self, value: float) -> float:
        """Where `value` stands, from 0 to 1."""
        low, high, at = self.low, self.high, value
        if self.powers:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return (at - low) / (high - low)


def drawn(chart: Chart) -> Markup:
    """A figure; nothing without a point."""
    series = [one for one in chart.series if one.points]
    if not series:
        return Markup()
    across = _across(max(place for one in series for place, _ in one.points))
    values = [value for one in series for _, value in one.points]
    values += [edge for one in series for _, low, high in one.errors for edge in (low, high)]
    up = _up(values, chart.scale)

    def at(place: float, value: float) -> str:
        x = _LEFT + across.share(place) * (_RIGHT - _LEFT)
        return f"{x:.1f},{_BOTTOM - min(max(up.share(value), 0.0), 1.0) * (_BOTTOM - _TOP):.1f}"

    parts = [*_rows(up), *_columns(across)]
    for one in series:
        if one.errors:
            around = [(x, low) for x, low, _ in one.errors] + [(x, high) for x, _, high in reversed(one.errors)]
            parts.append(f'<polygon class="{one.colour}" points="{" ".join(at(*point) for point in around)}"/>')
    for one in series:
        if len(one.points) > 1:
            line = " ".join(at(*point) for point in one.points)
            parts.append(f'<polyline class="{one.colour}" points="{line}"><title>{escape(one.name)}</title></polyline>')
        else:
            x, _, y = at(*one.points[0]).partition(",")
            parts.append(f'<circle class="{one.colour}" cx="{x}" cy="{y}" r="3"/>')
    said = f"{chart.said} Logarithmic scale." if up.powers else chart.said
    return Markup(
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.name)}">'
        f"{''.join(parts)}</svg><figcaption><b>{escape(chart.name)}</b>{_legend(series)}"
        f"{escape(said.strip())}</figcaption></figure>"
    )


def count(value: float) -> str:
    """A number of images, short: 41.6k."""
    power = 0
    while value >= 1000 and power < len(_LETTERS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.4g}{_LETTERS[power]}"


def _legend(series: Sequence[Series]) -> str:
    keys = "".join(
        f'<span class="key"><i class="{one.colour}"></i>{escape(one.name)}: {number(one.points[-1][1])}</span>'
        for one in series
    )
    return f"<div>{keys}</div>"


def _across(last: float) -> _Axis:
    end = last or 1.0
    return _Axis(low=0.0, high=end, marks=tuple(one for one in ticks([0.0, end]) if one <= end), powers=False)


def _up(values: Sequence[float], scale: Scale) -> _Axis:
    low, high = min(values), max(values)
    if scale == "auto" and low > 0 and high / low >= _WIDE:
        return _powers(low, high)
    if high - low <= _FLAT * max(abs(low), abs(high)):
        low = high  # what differs by rounding alone is level
    marks = ticks([0.0, low, high] if scale == "zero" else [low, high])
    if marks[0] == marks[-1]:
        marks = [0.0, 1.0]  # values too small for a scale of their own
    return _Axis(low=marks[0], high=marks[-1], marks=tuple(marks), powers=False)


def _powers(low: float, high: float) -> _Axis:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [round_ for power in exponents for round_ in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    low, high = low / 1.03, high * 1.03
    marks = [one for one in every if low <= one <= high]
    if len(marks) > _FULL:
        tens = [10.0**power for power in exponents if low <= 10.0**power <= high]
        marks = tens[:: math.ceil(len(tens) / _FULL)]
    return _Axis(low=low, high=high, marks=tuple(marks), powers=True)


def _rows(scale: _Axis) -> list[str]:
    parts = []
    for mark in scale.marks:
        y = _BOTTOM - scale.share(mark) * (_BOTTOM - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(mark)}</text>')
    return parts


def _columns(scale: _Axis) -> list[str]:
    parts = []
    for mark in scale.marks:
        x = _LEFT + scale.share(mark) * (_RIGHT - _LEFT)
        anchor = "end" if scale.share(mark) > 0.97 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="{anchor}">{count(mark)}</text>')
    return parts
