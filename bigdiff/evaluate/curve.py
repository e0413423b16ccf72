"""FID against CLIP-SCORE, a point for each guidance, as a picture: down and to the right is better."""

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

WIDTH: Final = 720
HEIGHT: Final = 540
_LEFT: Final = 80
_RIGHT: Final = 690
_TOP: Final = 40
_BOTTOM: Final = 480
_INK: Final = "#222222"
_PALE: Final = "#dddddd"
_LINE: Final = "#1f5fa8"

Place = tuple[float, float, float]  # guidance, CLIP-SCORE, FID


def curve(points: Sequence[Place], title: str) -> Image.Image:
    """An RGB picture of `points`, joined in the order of their guidance; at least two."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas = ImageDraw.Draw(picture)
    small, large = ImageFont.load_default(size=13), ImageFont.load_default(size=15)
    ordered = sorted(points)
    across, down = ticks([one[1] for one in ordered]), ticks([one[2] for one in ordered])
    for value in across:
        x = _between(value, across, _LEFT, _RIGHT)
        canvas.line(((x, _TOP), (x, _BOTTOM)), fill=_PALE)
        canvas.text((x, _BOTTOM + 8), f"{value:g}", fill=_INK, font=small, anchor="mt")
    for value in down:
        y = _between(value, down, _BOTTOM, _TOP)
        canvas.line(((_LEFT, y), (_RIGHT, y)), fill=_PALE)
        canvas.text((_LEFT - 8, y), f"{value:g}", fill=_INK, font=small, anchor="rm")
    canvas.text(((_LEFT + _RIGHT) / 2, HEIGHT - 14), "CLIP-SCORE", fill=_INK, font=large, anchor="mb")
    canvas.text((12, 14), f"FID   ({title})", fill=_INK, font=large, anchor="lt")
    places = [(_between(x, across, _LEFT, _RIGHT), _between(y, down, _BOTTOM, _TOP)) for _, x, y in ordered]
    canvas.line(places, fill=_LINE, width=2)
    for (x, y), (guidance, _, _) in zip(places, ordered, strict=True):
        canvas.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_LINE)
        canvas.text((x + 7, y - 7), f"{guidance:g}", fill=_INK, font=small, anchor="lb")
    return picture


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, three to eight of them, from at or below the least of `values` to the greatest."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if span / step <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return [round(number * step, 12) for number in range(first, last + 1)]


def _between(value: float, marks: Sequence[float], begin: float, end: float) -> float:
    return begin + (value - marks[0]) / (marks[-1] - marks[0]) * (end - begin)
