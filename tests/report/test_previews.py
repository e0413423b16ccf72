from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.metrics.writer import Writer
from bigdiff.report import folder, previews
from bigdiff.report.previews import evenly, images, jpeg


def draw(run: Path, count: int) -> None:
    """As a run draws them: the shade is the number of images seen."""
    writer = Writer(run / "tensorboard", run / "unused.jsonl", 0)
    for seen in range(1, count + 1):
        writer.image("preview/ema", np.full((8, 8, 3), seen, np.uint8), seen)
        writer.image("other", np.zeros((8, 8, 3), np.uint8), seen)
    writer.close()


def test_pictures_come_back_as_they_were_drawn(tmp_path: Path) -> None:
    draw(tmp_path, 12)
    found = images(tmp_path / "tensorboard")
    assert list(found) == ["ema"]
    assert [seen for seen, _ in found["ema"]] == list(range(1, 13))
    for seen, png in found["ema"]:
        assert np.asarray(Image.open(BytesIO(png))).tolist() == np.full((8, 8, 3), seen).tolist()


def test_the_page_has_the_first_the_last_and_no_more_than_it_may(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    draw(run, 20)
    html = previews.written(folder.read(run), run / "tensorboard")
    reader = parsed(html)
    assert len(reader.sources) == previews.SHOWN
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    assert "after 1 images" in html and "after 20 images" in html
    assert f"{previews.SHOWN} of 20 are shown." in html


def test_rows_of_several_scales_are_said(made: Callable[..., Path]) -> None:
    drawing = ("preview.every=350", "preview.prompts=[a red circle]", "preview.more_guidance=[1.5,7]")
    run = made(0, drawing)
    draw(run, 1)
    html = previews.written(folder.read(run), run / "tensorboard")
    assert "for: a red circle. Row by row at guidance 3, 1.5, 7." in html


def test_without_pictures_there_is_a_word(made: Callable[..., Path]) -> None:
    drawing = ("preview.every=350", "preview.prompts=[a red circle]")
    for overrides, said in (
        (drawing, "None yet: the stage draws previews every 350 steps."),
        ((), "draws no previews"),
    ):
        run = made(0, overrides)
        html = previews.written(folder.read(run), run / "tensorboard")
        assert said in html and "<img" not in html


@given(st.lists(st.integers(), min_size=1, max_size=100), st.integers(2, 20))
def test_a_choice_is_bounded_even_and_keeps_both_ends(every: list[int], most: int) -> None:
    places = evenly(range(len(every)), most)
    assert len(places) == min(len(every), most)
    assert (places[0], places[-1]) == (0, len(every) - 1)
    steps = [after - before for before, after in pairwise(places)]
    assert not steps or max(steps) - min(steps) <= 1


def test_large_pictures_are_made_smaller_and_damaged_ones_named() -> None:
    stream = BytesIO()
    Image.new("RGB", (3000, 1500)).save(stream, "PNG")
    assert Image.open(BytesIO(jpeg(stream.getvalue(), "x"))).size == (1024, 512)
    with pytest.raises(UsageError, match="x is no picture"):
        jpeg(b"nothing", "x")
