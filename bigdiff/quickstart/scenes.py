"""Drawn scenes whose truth is known: the embedded dataset of the quickstart.

A scene is one coloured shape (sometimes two) at a place on a plain background. Everything about scene number `index` is
computed from `(seed, index)`, so any process can draw any scene in any order and nothing has to be stored.

A fifth of all (shape, colour, background, place) combinations is held out: they are never drawn for training, though
each of their words, and each pair of their words, is. A model that draws them right has learnt what the words mean and
how they combine; it cannot have copied a training picture.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

# Far apart in RGB, so that blur and a lossy autoencoder cannot turn one into another; each a single token of CLIP's.
PALETTE: Final[dict[str, RGB]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 64),
    "blue": (40, 72, 208),
    "yellow": (240, 208, 48),
    "white": (238, 238, 238),
    "black": (24, 24, 24),
}
COLOURS: Final[tuple[str, ...]] = tuple(PALETTE)
BACKGROUNDS: Final[tuple[str, ...]] = tuple(PALETTE)
SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle")
# Horizontal centre of each place, as a fraction of the side.
PLACES: Final[dict[str, float]] = {"left": 0.28, "center": 0.5, "right": 0.72}

SINGLE_TEMPLATES: Final[tuple[str, ...]] = (
    "a {thing} on a {background} background at the {place}",
    "a {thing} at the {place} on a {background} background",
    "at the {place}, a {thing} on {background}",
    "a {thing} on {background}, at the {place}",
    "a {background} background with a {thing} at the {place}",
)
DOUBLE_TEMPLATES: Final[tuple[str, ...]] = (
    "a {first} at the {place} and a {second} at the {other} on a {background} background",
    "a {background} background with a {first} at the {place} and a {second} at the {other}",
)

_DOUBLE_SHARE: Final = 0.1
_RADIUS: Final = (0.20, 0.24)  # a triangle at the left or right must not reach over the edge
_DOUBLE_RADIUS: Final = (0.15, 0.175)  # two triangles side by side must not touch
_JITTER_X: Final = 0.02
_JITTER_Y: Final = 0.06
_TINT: Final = 10  # largest change of a colour channel, of 255
_OVERSAMPLING: Final = 4
# Relative to the radius, so that the three shapes cover similar areas: size must not give the shape away.
_SQUARE_HALF_SIDE: Final = 0.88
_TRIANGLE_CIRCUMRADIUS: Final = 1.25
# One number per independent use of randomness; part of every generator's key.
_DRAW, _WORDS, _TEST = 0, 1, 2


@dataclass(frozen=True)
class Combination:
    """The four attributes a caption states about a single-object scene."""

    shape: str
    colour: str
    background: str
    place: str


@dataclass(frozen=True)
class Thing:
    """One drawn shape; `x`, `y` and `radius` are fractions of the picture's side."""

    shape: str
    colour: str
    place: str
    x: float
    y: float
    radius: float
    rgb: RGB


@dataclass(frozen=True)
class Scene:
    """A picture's whole truth, jitter included: rendering adds nothing."""

    background: str
    rgb: RGB
    things: tuple[Thing, ...]


@cache
def combinations() -> tuple[Combination, ...]:
    """All single-object combinations; a thing never has its background's colour."""
    everything = product(SHAPES, COLOURS, BACKGROUNDS, PLACES)
    return tuple(Combination(*values) for values in everything if values[1] != values[2])


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether training never sees this combination: a fixed diagonal rule, which leaves every pair of values some."""
    shape = SHAPES.index(combination.shape)
    place = tuple(PLACES).index(combination.place)
    colour = COLOURS.index(combination.colour)
    # The background counted among the five that the colour allows, so that every colour loses equally many.
    background = (BACKGROUNDS.index(combination.background) - colour - 1) % len(PALETTE)
    return (2 * shape + place + colour + background) % 5 == 0


@cache
def held_out_combinations() -> tuple[Combination, ...]:
    """The combinations that only the test asks for."""
    return tuple(combination for combination in combinations() if is_held_out(combination))


@cache
def training_combinations() -> tuple[Combination, ...]:
    """The combinations that training scenes are drawn from."""
    return tuple(combination for combination in combinations() if not is_held_out(combination))


def scene(seed: int, index: int) -> Scene:
    """Training scene number `index`: pure, and free of held-out combinations even where it shows two things."""
    random = np.random.default_rng((seed, index, _DRAW))
    allowed = training_combinations()
    first = allowed[int(random.integers(len(allowed)))]
    if random.random() >= _DOUBLE_SHARE:
        return _compose((first,), random)
    left = Combination(first.shape, first.colour, first.background, "left")
    # Moving the thing aside may have made a held-out combination; such a scene stays a single one.
    if is_held_out(left):
        return _compose((first,), random)
    others = [each for each in allowed if _beside(each, left)]
    return _compose((left, others[int(random.integers(len(others)))]), random)


def held_out_scenes(count: int, seed: int) -> tuple[Scene, ...]:
    """Single-object scenes of held-out combinations, each combination equally often (to within one)."""
    wanted = held_out_combinations()
    order = np.random.default_rng((seed, _TEST)).permutation(len(wanted))
    return tuple(
        _compose((wanted[int(order[index % len(wanted)])],), np.random.default_rng((seed, index, _TEST)))
        for index in range(count)
    )


def combination(scene: Scene) -> Combination:
    """The truth of a single-object scene, in the caption's words."""
    if len(scene.things) != 1:
        raise ValueError(f"a scene of {len(scene.things)} things has no single combination")
    thing = scene.things[0]
    return Combination(thing.shape, thing.colour, scene.background, thing.place)


def caption(scene: Scene, seed: int, index: int) -> str:
    """One of the scene's paraphrases, chosen by `(seed, index)`."""
    random = np.random.default_rng((seed, index, _WORDS))
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    if len(names) == 1:
        template = SINGLE_TEMPLATES[int(random.integers(len(SINGLE_TEMPLATES)))]
        return template.format(thing=names[0], background=scene.background, place=scene.things[0].place)
    template = DOUBLE_TEMPLATES[int(random.integers(len(DOUBLE_TEMPLATES)))]
    # Either thing may be named first: the order of mention must not stand for the place.
    near, far = (0, 1) if random.random() < 0.5 else (1, 0)
    return template.format(
        first=names[near],
        place=scene.things[near].place,
        second=names[far],
        other=scene.things[far].place,
        background=scene.background,
    )


def render(scene: Scene, size: int = 96) -> Image.Image:
    """Draws the scene as an RGB picture of `size` pixels a side, with smooth edges."""
    picture = Image.new("RGB", (size, size), scene.rgb)
    for thing in scene.things:
        mask = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), 0)
        _draw(ImageDraw.Draw(mask), thing, size * _OVERSAMPLING)
        picture.paste(thing.rgb, (0, 0), mask.reduce(_OVERSAMPLING))
    return picture


def corners(shape: str, x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    """The corners of a square or triangle centred (by mass) on `x`, `y`."""
    if shape == "square":
        half = _SQUARE_HALF_SIDE * radius
        return ((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half))
    reach = _TRIANGLE_CIRCUMRADIUS * radius
    side = reach * math.sin(math.pi / 3)
    return ((x, y - reach), (x + side, y + reach / 2), (x - side, y + reach / 2))


def _draw(canvas: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        canvas.polygon(corners(thing.shape, x, y, radius), fill=255)


def _beside(right: Combination, left: Combination) -> bool:
    return right.place == "right" and right.background == left.background and right.colour != left.colour


def _compose(wanted: tuple[Combination, ...], random: np.random.Generator) -> Scene:
    smallest, largest = _RADIUS if len(wanted) == 1 else _DOUBLE_RADIUS
    things = tuple(
        Thing(
            shape=each.shape,
            colour=each.colour,
            place=each.place,
            x=PLACES[each.place] + float(random.uniform(-_JITTER_X, _JITTER_X)),
            y=0.5 + float(random.uniform(-_JITTER_Y, _JITTER_Y)),
            radius=float(random.uniform(smallest, largest)),
            rgb=_tinted(each.colour, random),
        )
        for each in wanted
    )
    background = wanted[0].background
    return Scene(background, _tinted(background, random), things)


def _tinted(colour: str, random: np.random.Generator) -> RGB:
    red, green, blue = (
        int(value) for value in np.clip(np.add(PALETTE[colour], random.integers(-_TINT, _TINT + 1, 3)), 0, 255)
    )
    return red, green, blue
