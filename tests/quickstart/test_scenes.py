"""Laws of the drawn scenes: pure, honest about what is held out, and captioned with nothing but the truth."""

import re
from itertools import combinations as pairs
from itertools import pairwise, product

import numpy as np
import pytest

from bigdiff.quickstart import scenes

_COLOUR = r"(red|green|blue|yellow|white|black)"
_THING = rf"an? {_COLOUR} (circle|square|triangle)"
_PLACE = r"at the (left|center|right)"


def _parse(caption: str) -> tuple[str, set[tuple[str, str, str]]]:
    """Background and {(colour, shape, place)} of a caption, read by its grammar, not by the templates that wrote it."""
    grounds = re.findall(rf"on {_COLOUR}\b|{_COLOUR} background", caption)
    assert len(grounds) == 1, caption
    things = re.findall(_THING, caption)
    places = re.findall(_PLACE, caption)
    assert len(things) == len(places), caption
    return next(word for word in grounds[0] if word), {
        (*thing, place) for thing, place in zip(things, places, strict=True)
    }


def _truth(scene: scenes.Scene) -> tuple[str, set[tuple[str, str, str]]]:
    return scene.background, {(thing.colour, thing.shape, thing.place) for thing in scene.things}


def test_same_seed_and_index_give_the_same_scene_caption_and_pixels() -> None:
    for index in (0, 1, 4321):
        first, second = scenes.scene(7, index), scenes.scene(7, index)
        assert first == second
        assert scenes.caption(first, 7, index) == scenes.caption(second, 7, index)
        assert scenes.render(first).tobytes() == scenes.render(second).tobytes()


def test_another_seed_or_index_gives_another_scene() -> None:
    assert len({scenes.scene(seed, index) for seed, index in product(range(20), range(20))}) == 400


def test_no_held_out_combination_is_drawn_for_training() -> None:
    drawn: set[scenes.Combination] = set()
    doubles = 0
    for index in range(20_000):
        scene = scenes.scene(0, index)
        doubles += len(scene.things) == 2
        for thing in scene.things:
            drawn.add(scenes.Combination(thing.shape, thing.colour, scene.background, thing.place))
            assert thing.colour != scene.background
    assert not any(scenes.is_held_out(combination) for combination in drawn)
    assert drawn == set(scenes.training_combinations())
    assert 0.06 < doubles / 20_000 < 0.12


def test_held_out_and_training_combinations_share_out_everything() -> None:
    held_out, training = set(scenes.held_out_combinations()), set(scenes.training_combinations())
    assert len(held_out) >= 48
    assert held_out.isdisjoint(training)
    assert held_out | training == set(scenes.combinations())


@pytest.mark.parametrize("names", list(pairs(("shape", "colour", "background", "place"), 2)))
def test_every_pair_of_values_is_still_taught(names: tuple[str, str]) -> None:
    def seen(from_combinations: tuple[scenes.Combination, ...]) -> set[tuple[str, str]]:
        return {(getattr(each, names[0]), getattr(each, names[1])) for each in from_combinations}

    assert seen(scenes.training_combinations()) == seen(scenes.combinations())


def test_captions_parse_back_to_the_truth() -> None:
    for index in range(2000):
        scene = scenes.scene(3, index)
        assert _parse(scenes.caption(scene, 3, index)) == _truth(scene)


def test_every_template_is_used() -> None:
    captions = {
        re.sub(rf"{_COLOUR}|circle|square|triangle|left|center|right", "_", _caption(index)) for index in range(500)
    }
    assert len(captions) == len(scenes.SINGLE_TEMPLATES) + len(scenes.DOUBLE_TEMPLATES)


def test_held_out_scenes_are_held_out_balanced_and_repeatable() -> None:
    chosen = scenes.held_out_scenes(128, 5)
    assert chosen == scenes.held_out_scenes(128, 5)
    assert chosen != scenes.held_out_scenes(128, 6)
    truths = [scenes.combination(scene) for scene in chosen]
    assert all(scenes.is_held_out(truth) for truth in truths)
    counts = [truths.count(truth) for truth in set(truths)]
    assert len(counts) == len(scenes.held_out_combinations())
    assert max(counts) - min(counts) <= 1


def test_a_scene_of_two_things_has_no_single_combination() -> None:
    double = next(scene for scene in (scenes.scene(0, index) for index in range(500)) if len(scene.things) == 2)
    with pytest.raises(ValueError, match="2 things"):
        scenes.combination(double)


@pytest.mark.parametrize("size", [32, 96])
def test_render_shows_the_scene_at_any_size(size: int) -> None:
    for scene in scenes.held_out_scenes(20, 1):
        pixels = np.asarray(scenes.render(scene, size))
        assert pixels.shape == (size, size, 3)
        assert tuple(pixels[0, 0]) == scene.rgb
        thing = scene.things[0]
        assert tuple(pixels[int(thing.y * size), int(thing.x * size)]) == thing.rgb


def test_things_lie_within_the_picture_and_do_not_touch() -> None:
    for index in range(3000):
        things = scenes.scene(2, index).things
        boxes = sorted(_box(thing) for thing in things)
        assert all(0 <= edge <= 1 for box in boxes for edge in box)
        assert all(left[1] < right[0] for left, right in pairwise(boxes))


def _box(thing: scenes.Thing) -> tuple[float, float, float, float]:
    ring = (
        scenes.corners(thing.shape, thing.x, thing.y, thing.radius)
        if thing.shape != "circle"
        else (
            (thing.x - thing.radius, thing.y - thing.radius),
            (thing.x + thing.radius, thing.y + thing.radius),
        )
    )
    across, down = [corner[0] for corner in ring], [corner[1] for corner in ring]
    return min(across), max(across), min(down), max(down)


def _caption(index: int) -> str:
    return scenes.caption(scenes.scene(0, index), 0, index)
