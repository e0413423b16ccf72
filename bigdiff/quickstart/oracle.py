"""The judge of drawn scenes: reads shape, colour, background and place off a picture, never having seen the caption.

It knows how scenes are drawn and nothing else. A picture without exactly one recognisable thing gets `None` for what it
fails to show, and `None` never equals the truth. Works at 32 pixels a side and above, and tolerates blur and noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bigdiff.quickstart import scenes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Half the smallest distance between two palette colours is 71: beyond it, a colour is not one that has a name.
_NAMEABLE: Final = 71.0
_VISIBLE: Final = 0.5  # of the thing's own contrast: where its edge is put
_LEAST_CONTRAST: Final = 60.0  # RGB distance from the background below which nothing is there
# Share of the picture that one thing may cover; drawn ones cover 9 to 20 %.
_LEAST_AREA, _MOST_AREA = 0.04, 0.32
_SECOND_THING: Final = 0.2  # of the largest one's area: beyond it, there are two things and no single answer
_SAME_SHAPE: Final = (
    0.78  # least overlap (intersection over union) with the best template; circle and square overlap 0.83
)
_PLACE_REACH: Final = 0.11  # half the distance between two places
_PLACE_TALL: Final = 0.16  # how far above or below the middle line a thing may be
_GRID: Final = 4  # samples per pixel and direction in a template


@dataclass(frozen=True)
class Attributes:
    """What a picture shows; `None` where it shows no such thing."""

    shape: str | None
    colour: str | None
    background: str | None
    place: str | None


@dataclass(frozen=True)
class Accuracy:
    """The share of pictures in which each attribute was right."""

    shape: float
    colour: float
    background: float
    place: float


def judge(image: NDArray[np.uint8]) -> Attributes:
    """Reads one picture, height x width x 3."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"expected a square picture of height x width x 3, got {image.shape}")
    pixels = image.astype(np.float64)
    ground = _ground(pixels)
    background = _named(ground)
    thing = _thing(pixels, ground)
    if thing is None:
        return Attributes(None, None, background, None)
    colour = _core_colour(pixels, ground, thing)
    coverage = _coverage(pixels, ground, colour, thing)
    x, y = _centre(coverage)
    return Attributes(_shape(coverage, x, y), _named(colour), background, _place(x, y))


def accuracy(seen: Sequence[Attributes], truth: Sequence[scenes.Combination]) -> Accuracy:
    """Compares what was seen with what was asked for, attribute by attribute."""
    if len(seen) != len(truth) or not truth:
        raise ValueError(
            f"expected as many judged pictures as truths and at least one, got {len(seen)} and {len(truth)}"
        )
    shares = {
        field.name: float(
            np.mean([getattr(a, field.name) == getattr(b, field.name) for a, b in zip(seen, truth, strict=True)])
        )
        for field in fields(Accuracy)
    }
    return Accuracy(**shares)


def _ground(pixels: Floats) -> Floats:
    """The background's colour: the median of the frame, which a thing can touch but not fill."""
    width = max(1, len(pixels) // 16)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[width:-width, width:-width] = True
    frame: Floats = np.median(pixels[~inside], axis=0)
    return frame


def _named(colour: Floats) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in scenes.PALETTE.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= _NAMEABLE else None


def _thing(pixels: Floats, ground: Floats) -> Mask | None:
    """The pixels of the one thing in the picture, or None where there is none or more than one."""
    distance: Floats = np.linalg.norm(pixels - ground, axis=2)
    # Smoothing first, so that noise neither bridges gaps nor makes specks.
    distance = ndimage.gaussian_filter(distance, 0.01 * len(distance))
    contrast = float(np.quantile(distance, 0.97))  # of the fully covered pixels, few as they are
    if contrast < _LEAST_CONTRAST:
        return None
    parts, _ = ndimage.label(distance > _VISIBLE * contrast)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    order = np.argsort(areas)[::-1]
    largest = int(areas[order[0]])
    if not _LEAST_AREA <= largest / distance.size <= _MOST_AREA:
        return None
    mask: Mask = parts == order[0]
    # A second thing may stand out less than the first, so it is looked for by the absolute measure.
    elsewhere = (distance > _LEAST_CONTRAST) & ~ndimage.binary_dilation(mask, iterations=max(1, len(mask) // 16))
    return mask if elsewhere.sum() <= _SECOND_THING * largest else None


def _core_colour(pixels: Floats, ground: Floats, thing: Mask) -> Floats:
    """The thing's colour: the median away from its edge, where colours mix."""
    depth = ndimage.distance_transform_edt(thing)
    core = depth >= 0.5 * depth.max()
    colour: Floats = np.median(pixels[core], axis=0)
    return colour


def _coverage(pixels: Floats, ground: Floats, colour: Floats, thing: Mask) -> Floats:
    """How much of each pixel the thing covers, 0 to 1: its position between the two colours, near the thing only."""
    span = colour - ground
    along = np.clip((pixels - ground) @ span / float(span @ span), 0, 1)
    near = ndimage.binary_dilation(thing, iterations=max(1, len(thing) // 24))
    coverage: Floats = np.where(near, along, 0.0)
    return coverage


def _centre(coverage: Floats) -> tuple[float, float]:
    steps = (np.arange(len(coverage)) + 0.5) / len(coverage)
    total = float(coverage.sum())
    return float(coverage.sum(axis=0) @ steps) / total, float(coverage.sum(axis=1) @ steps) / total


def _place(x: float, y: float) -> str | None:
    nearest = min(scenes.PLACES, key=lambda place: abs(scenes.PLACES[place] - x))
    within = abs(scenes.PLACES[nearest] - x) < _PLACE_REACH and abs(y - 0.5) < _PLACE_TALL
    return nearest if within else None


def _shape(coverage: Floats, x: float, y: float) -> str | None:
    """The shape whose template of equal area and centre overlaps most, if it overlaps enough."""
    area = float(coverage.mean())
    overlaps: dict[str, float] = {}
    for shape in scenes.SHAPES:
        template = _template(shape, x, y, _radius(shape, area), len(coverage))
        overlaps[shape] = float(np.minimum(coverage, template).sum() / np.maximum(coverage, template).sum())
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= _SAME_SHAPE else None


def _radius(shape: str, area: float) -> float:
    """The radius at which `shape` covers `area`."""
    if shape == "circle":
        return float(np.sqrt(area / np.pi))
    ring = np.array(scenes.corners(shape, 0.0, 0.0, 1.0))
    following = np.roll(ring, -1, axis=0)
    unit = 0.5 * abs(float(np.sum(ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0])))
    return float(np.sqrt(area / unit))


def _template(shape: str, x: float, y: float, radius: float, side: int) -> Floats:
    """The coverage an ideal drawing would have."""
    steps = (np.arange(side * _GRID) + 0.5) / (side * _GRID)
    across, down = steps[None, :], steps[:, None]
    if shape == "circle":
        inside = (across - x) ** 2 + (down - y) ** 2 <= radius**2
    else:
        inside = np.ones((len(steps), len(steps)), bool)
        ring = scenes.corners(shape, x, y, radius)
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            # Corners run clockwise on the screen, so the inside is where this cross product is not negative.
            inside &= (x1 - x0) * (down - y0) - (y1 - y0) * (across - x0) >= 0
    coverage: Floats = inside.reshape(side, _GRID, side, _GRID).mean(axis=(1, 3))
    return coverage
