"""The judge is right about true pictures, also blurred and noisy ones, and is not fooled by wrong or empty ones."""

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bigdiff.quickstart import oracle, scenes

Picture = NDArray[np.uint8]
_TEST = scenes.held_out_scenes(162, 11)
_TRUTH = [scenes.combination(scene) for scene in _TEST]


def _plain(picture: Image.Image) -> Image.Image:
    return picture


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(picture.width / 40))


def _noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 20, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _coarse(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2)).resize(picture.size)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("spoil", [_plain, _blurred, _noisy, _coarse])
def test_true_pictures_are_judged_right(size: int, spoil: Callable[[Image.Image], Image.Image]) -> None:
    seen = [oracle.judge(np.asarray(spoil(scenes.render(scene).resize((size, size))))) for scene in _TEST]
    assert min(astuple(oracle.accuracy(seen, _TRUTH))) >= 0.95


@pytest.mark.parametrize("size", [32, 64])
def test_an_empty_background_shows_no_thing(size: int) -> None:
    for name, rgb in scenes.PALETTE.items():
        seen = oracle.judge(np.full((size, size, 3), rgb, np.uint8))
        assert seen == oracle.Attributes(None, None, name, None)


def test_noise_alone_shows_nothing() -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        assert oracle.judge(noise) == oracle.Attributes(None, None, None, None)


@pytest.mark.parametrize("attribute", ["shape", "colour", "background", "place"])
def test_a_wrong_picture_is_judged_wrong_in_just_what_is_wrong(attribute: str) -> None:
    wrong = [_with_another(scene, attribute) for scene in _TEST]
    seen = [oracle.judge(np.asarray(scenes.render(scene, 64))) for scene in wrong]
    found = oracle.accuracy(seen, _TRUTH)
    for name in ("shape", "colour", "background", "place"):
        share = getattr(found, name)
        assert share <= 0.02 if name == attribute else share >= 0.95


def test_two_things_are_not_one() -> None:
    doubles = [scene for scene in (scenes.scene(0, index) for index in range(600)) if len(scene.things) == 2]
    for scene in doubles:
        seen = oracle.judge(np.asarray(scenes.render(scene, 64)))
        assert (seen.shape, seen.colour, seen.place) == (None, None, None)


def test_a_shapeless_blot_has_no_shape() -> None:
    picture = np.full((64, 64, 3), scenes.PALETTE["blue"], np.uint8)
    picture[22:30, 8:56] = picture[30:44, 8:16] = scenes.PALETTE["red"]
    seen = oracle.judge(picture)
    assert (seen.shape, seen.colour, seen.background) == (None, "red", "blue")


def test_unnameable_colours_have_no_name() -> None:
    picture = np.full((64, 64, 3), (130, 130, 130), np.uint8)
    picture[20:44, 20:44] = (255, 0, 255)
    assert oracle.judge(picture) == oracle.Attributes("square", None, None, "center")


def test_what_is_not_a_square_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="square picture"):
        oracle.judge(np.zeros((3, 64, 64), np.uint8))


def test_accuracy_counts_each_attribute_alone() -> None:
    truth = [scenes.Combination("circle", "red", "blue", "left")] * 4
    right = oracle.Attributes("circle", "red", "blue", "left")
    seen = [right, replace(right, shape=None), replace(right, shape="square", place=None), right]
    assert oracle.accuracy(seen, truth) == oracle.Accuracy(shape=0.5, colour=1.0, background=1.0, place=0.75)


def test_accuracy_refuses_unequal_and_empty_lists() -> None:
    with pytest.raises(ValueError, match="as many"):
        oracle.accuracy([], _TRUTH)
    with pytest.raises(ValueError, match="at least one"):
        oracle.accuracy([], [])


def _with_another(scene: scenes.Scene, attribute: str) -> scenes.Scene:
    """The same scene drawn with one attribute changed."""
    thing = scene.things[0]
    free = next(name for name in scenes.PALETTE if name not in (thing.colour, scene.background))
    if attribute == "background":
        return replace(scene, background=free, rgb=scenes.PALETTE[free])
    if attribute == "colour":
        changed = replace(thing, colour=free, rgb=scenes.PALETTE[free])
    elif attribute == "shape":
        changed = replace(thing, shape=next(shape for shape in scenes.SHAPES if shape != thing.shape))
    else:
        place = next(place for place in scenes.PLACES if place != thing.place)
        changed = replace(thing, place=place, x=scenes.PLACES[place])
    return replace(scene, things=(changed,))
