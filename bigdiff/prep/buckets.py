"""How pictures are fitted: whole, or into shapes of about the same number of pixels each, with sides of a step.

The shapes are as in NovelAI's aspect ratio bucketing (2022): for each width that is a multiple of the step, the largest
such height with which the area does not exceed that of the square.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from bigdiff.config.prep import Pack

DEFAULT_MAX_ASPECT = 2.0
WHOLE: Final = "none"  # the crop of a set of whole pictures, as its settings and its contract say it
Shape = tuple[int, int]  # width, height


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a set's pictures are fitted before they are hashed and stored."""

    shapes: tuple[Shape, ...] = ()  # cropped to the one of the nearest aspect
    whole: bool = False  # resized to cover the one shape, and not cropped


def fit(pack: Pack) -> Fit:
    """That of a set that is made with these settings."""
    return Fit(shapes=shapes(pack), whole=pack.crop == WHOLE)


def are_whole(contract: Mapping[str, Any]) -> bool:
    """Whether the pictures of an image set with this contract were stored whole."""
    return contract.get("crop") == WHOLE


@cache
def shapes(pack: Pack) -> tuple[Shape, ...]:
    """What a set's pictures may be, from the widest to the tallest; without buckets the square alone."""
    side, step = pack.resolution, pack.bucket_step
    if step is None:
        return ((side, side),)
    most = pack.bucket_max_aspect or DEFAULT_MAX_ASPECT
    found = set()
    for width in range(step, int(side * math.sqrt(most)) + 1, step):
        height = side * side // width // step * step
        if height and max(width, height) <= most * min(width, height):
            found |= {(width, height), (height, width)}
    return tuple(sorted(found, key=lambda one: (-one[0] / one[1], one)))


def nearest(allowed: Sequence[Shape], width: int, height: int) -> Shape:
    """The shape whose aspect is nearest to that of a picture, by ratio; of equally near ones the first."""
    return min(allowed, key=lambda one: abs(math.log(one[0] * height / (one[1] * width))))


def name(shape: Shape) -> str:
    """As shards and contracts name it: "640x384", width first."""
    return f"{shape[0]}x{shape[1]}"


def parse(text: str) -> Shape:
    """The shape of a `name`."""
    width, _, height = text.partition("x")
    return int(width), int(height)
