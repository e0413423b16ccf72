"""Bars and histograms as inline SVG and HTML."""

from html import escape
from typing import Final

from bigdiff.prep.select import Histogram

_WIDTH: Final = 420
_HEIGHT: Final = 130
_BASE: Final = 150  # y of the axis


def bar(part: int, whole: int) -> str:
    """A horizontal bar of `part` in `whole`; what is not nothing can be seen."""
    share = 100.0 * part / whole if whole else 0.0
    return f'<div class="bar"><i style="width:{max(share, 0.4) if part else 0:.2f}%"></i></div>'


def histogram(drawn: Histogram, below: bool) -> str:
    """Bars of a score over all rows; what the threshold refuses is pale. `below`: the rule keeps what lies below."""
    tallest = max(drawn.counts) or 1
    step = _WIDTH / len(drawn.counts)
    span = (drawn.high - drawn.low) or 1.0
    bars = []
    for index, count in enumerate(drawn.counts):
        height = max(count / tallest * _HEIGHT, 1.0) if count else 0.0
        middle = drawn.low + (index + 0.5) / len(drawn.counts) * span
        refused = drawn.threshold is not None and (middle >= drawn.threshold) == below
        bars.append(
            f'<rect x="{index * step + 0.5:.2f}" y="{_BASE - height:.2f}" width="{step - 1:.2f}" '
            f'height="{height:.2f}" class="{"off" if refused else "on"}"/>'
        )
    labels = (
        f'<text x="0" y="{_BASE + 16}">{drawn.low:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_BASE + 16}" text-anchor="end">{drawn.high:.3g}</text>'
    )
    axis = f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}" class="axis"/>'
    mark = _threshold(drawn, span)
    absent = f", {drawn.absent:,} without" if drawn.absent else ""
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_BASE + 22}" role="img" aria-label="histogram of {escape(drawn.score)}">'
        f"{''.join(bars)}{axis}{labels}{mark}</svg>"
        f"<figcaption>{escape(drawn.score)} ({sum(drawn.counts):,} rows{absent})</figcaption></figure>"
    )


def _threshold(drawn: Histogram, span: float) -> str:
    if drawn.threshold is None or not drawn.low <= drawn.threshold <= drawn.high:
        return ""
    at = (drawn.threshold - drawn.low) / span * _WIDTH
    right = at > _WIDTH / 2
    return (
        f'<line x1="{at:.2f}" y1="4" x2="{at:.2f}" y2="{_BASE}" class="mark"/>'
        f'<text x="{at + (-5 if right else 5):.2f}" y="14" class="mark" '
        f'text-anchor="{"end" if right else "start"}">{drawn.threshold:g}</text>'
    )
