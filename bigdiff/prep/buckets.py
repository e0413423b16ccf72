"""The shapes that pictures of all aspects are cropped to: about the same number of pixels each, sides of a step.

As in NovelAI's aspect ratio bucketing (2022): for each width that is a multiple of the step, the largest such height
with which the area does not exceed that of the square.
"""

import math
from collections.abc import Sequence
from functools import cache

from bigdiff.config.prep import Pack

DEFAULT_MAX_ASPECT = 2.0
Shape = tuple[int, int]  # width, height


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
