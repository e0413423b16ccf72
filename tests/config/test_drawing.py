from dataclasses import fields, replace
from pathlib import Path

import pytest

from bigdiff.config.drawing import Drawing, asked, check
from bigdiff.config.errors import UsageError

GRID = Drawing(pipeline=Path("p"), output=Path("grid.png"), prompt=("a", "b"))


def arguments(wanted: Drawing, **changed: object) -> dict[str, object]:
    """As a door's parser has them."""
    plain = {field.name: getattr(wanted, field.name) for field in fields(Drawing)}
    return {**plain, "prompt": list(wanted.prompt) or None, "seed": None, "seeds": None, **changed}


def test_arguments_become_a_drawing() -> None:
    assert asked(arguments(GRID)) == GRID
    assert asked(arguments(GRID, seed=4)) == replace(GRID, seeds=(4,))
    assert asked(arguments(GRID, seeds="3, 1,2")) == replace(GRID, seeds=(3, 1, 2))
    counted = replace(GRID, prompt=(), count=3)
    assert asked(arguments(counted)) == counted


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [("", "'' must be whole numbers with commas"), ("1;2", "must be whole numbers"), ("1,2,1", "names 1 twice")],
)
def test_seeds_that_are_none_are_refused(seeds: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^--seeds .*{sentence}"):
        asked(arguments(GRID, seeds=seeds))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (replace(GRID, output=None), "say where the pictures go"),
        (replace(GRID, output=Path("x.jpg")), "--output x.jpg must end in .png"),
        (replace(GRID, folder=Path(__file__)), r"--folder .*test_drawing\.py is a file"),
        (replace(GRID, output=None, folder=Path("f"), columns=2), "--columns has no effect without --output"),
        (replace(GRID, columns=-1), "--columns -1 must not be negative"),
        (replace(GRID, size=-8), "--size -8 must not be negative"),
        (replace(GRID, count=0), "--count 0 must be positive"),
        (replace(GRID, strength=0.5), "--strength has no effect without --image"),
        (replace(GRID, image=Path("i"), strength=0.0), "--strength 0 must be above 0 and at most 1"),
        (replace(GRID, image=Path("i"), strength=1.5), "--strength 1.5 must be above 0"),
        (replace(GRID, image=Path("i"), strength=float("nan")), "--strength nan must be above 0"),
        (replace(GRID, upscale_strength=0.5), "--upscale-strength has no effect without --upscale"),
        (replace(GRID, upscale=2.0, upscale_strength=0.0), "--upscale-strength 0 must be above 0"),
        (replace(GRID, upscale=1.0), "--upscale 1 must be above 1"),
        (replace(GRID, upscale=float("nan")), "--upscale nan must be above 1"),
        (replace(GRID, upscale=float("inf")), "--upscale inf must be above 1"),
        (replace(GRID, upscale=2.0, count=2), "--upscale is for models with text"),
        (replace(GRID, clip="c"), "--clip has no effect without --clip-guidance"),
        (replace(GRID, clip_model="m"), "--clip-model has no effect without --clip-guidance"),
        (replace(GRID, clip_guidance=100.0), "--clip-guidance needs CLIP's weights"),
        (replace(GRID, clip="c", clip_guidance=0.0), "--clip-guidance 0 must be above 0"),
        (replace(GRID, clip="c", clip_guidance=float("nan")), "--clip-guidance nan must be above 0"),
        (replace(GRID, clip="c", clip_guidance=1.0, count=2), "--clip-guidance is for models with text"),
        (replace(GRID, image=Path("i"), count=2), "--image is for models with text"),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_refused(wanted: Drawing, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(wanted)
