import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigdiff.evaluate import grid


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(1, 0, (1, 1)), (5, 0, (2, 3)), (6, 2, (3, 2)), (4, 8, (1, 8))]
)
def test_every_picture_lies_at_its_place(count: int, columns: int, shape: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 5, 7, 3), np.uint8)
    whole = grid.tiled(pictures, columns)
    rows, across = shape
    assert whole.shape == (rows * 5 + (rows - 1) * grid.GAP, across * 7 + (across - 1) * grid.GAP, 3)
    for place, picture in enumerate(pictures):
        top, left = (place // across) * (5 + grid.GAP), (place % across) * (7 + grid.GAP)
        assert np.array_equal(whole[top : top + 5, left : left + 7], picture)
    assert (np.delete(whole, slice(0, whole.shape[0] - 1), axis=0)[0, 7 : 7 + grid.GAP] == 255).all()


def test_captions_are_drawn_beneath_and_never_over_the_pictures() -> None:
    red = Image.new("RGB", (32, 32), "red")
    long = "a very long caption that says the same thing over and over again " * 4
    drawn = np.asarray(grid.captioned([red, red], ["", long], columns=2))
    side = grid.LEAST_SIDE
    assert (drawn[:side, :side] == (255, 0, 0)).all()
    assert (drawn[:side, side + grid.GAP :] == (255, 0, 0)).all()
    assert (drawn[side:, :side] == 255).all()  # nothing to say
    assert (drawn[side:, side + grid.GAP :] < 128).any()


def test_the_png_holds_its_settings(tmp_path: Path) -> None:
    settings = {"steps": 20, "prompts": ["a caf\u00e9", 'say "hi"']}
    grid.save(tmp_path / "new" / "grid.png", Image.new("RGB", (3, 4), "blue"), settings)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert json.loads(picture.text["settings"]) == settings  # type: ignore[attr-defined]
        assert picture.size == (3, 4)
        assert picture.getpixel((0, 0)) == (0, 0, 255)
