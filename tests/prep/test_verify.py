import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.prep import Download, Pack, Prep
from bigdiff.prep.layout import Layout
from bigdiff.prep.verify import LOST, SHOWN, by_part, thumbnail, units, verify

PREP = Prep(download=Download(rows_per_file=3), pack=Pack(resolution=16, min_side=10, caption_cut=12))


def picture(shade: int, size: tuple[int, int] = (30, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def table(layout: Layout, folder: str) -> list[dict[str, Any]]:
    files = sorted((layout.work / folder).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_every_row_becomes_a_sample_or_gets_a_cause(downloaded: Callable[..., Layout]) -> None:
    rows = [picture(0), "HTTP 404", b"<html>", None, picture(4), picture(5, (8, 90)), picture(6), "timed out"]
    layout = downloaded(rows, captions={0: " a\x00  red  circle on blue", 6: "\u200b"}, size=3)
    found = units(layout, PREP)
    assert [unit.name for unit in found] == ["00000-0-00000", "00000-0-00001", "00000-0-00002"]
    for unit in found:
        verify(unit)
    samples, rejected = table(layout, "samples"), table(layout, "rejected")
    assert {row["row"]: (row["step"], row["cause"]) for row in rejected} == {
        1: ("download", "HTTP 404"),
        2: ("verify", "not a picture"),
        3: ("download", LOST),
        5: ("verify", "smaller than pack.min_side"),
        6: ("verify", "caption without visible characters"),
        7: ("download", "timed out"),
    }
    assert [row["row"] for row in samples] == [0, 4]
    first = samples[0]
    assert (first["key"], first["caption"], first["url"]) == ("000000000", "a red circle", "http://example.com/0")
    assert (first["width"], first["height"], first["original_width"], first["original_height"]) == (16, 16, 30, 20)
    assert samples[1]["aesthetic"] == pytest.approx(4 / 7)
    for sample, unit in zip(samples, found, strict=False):
        stored = (layout.pictures / unit.name).read_bytes()[sample["offset"] :][: sample["length"]]
        assert hashlib.sha256(stored).hexdigest() == sample["sha256"]
        assert Image.open(io.BytesIO(stored)).size == (16, 16)


def test_rows_that_were_fetched_again_are_decided_by_the_second_pass(downloaded: Callable[..., Layout]) -> None:
    rows = [picture(0), "HTTP 429", "HTTP 404", "timed out"]
    layout = downloaded(rows, second={1: picture(1), 3: "timed out"}, size=3)
    for unit in units(layout, PREP):
        verify(unit)
    assert sorted(row["row"] for row in table(layout, "samples")) == [0, 1]
    assert {row["row"]: row["cause"] for row in table(layout, "rejected")} == {2: "HTTP 404", 3: "timed out"}
    assert {row["row"]: row["caption"] for row in table(layout, "samples")}[1] == "caption 1"


def test_a_finished_unit_is_left_alone_and_an_unfinished_one_comes_out_the_same(
    downloaded: Callable[..., Layout],
) -> None:
    layout = downloaded([picture(shade) for shade in range(3)])
    (unit,) = units(layout, PREP)
    verify(unit)
    files = [layout.samples / f"{unit.name}.parquet", layout.pictures / unit.name]
    before = [file.read_bytes() for file in files]
    files[1].write_bytes(b"left alone")
    verify(unit)
    assert files[1].read_bytes() == b"left alone"
    files[0].unlink()
    verify(unit)
    assert [file.read_bytes() for file in files] == before


def test_a_few_refused_pictures_are_kept_to_be_shown(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([picture(shade, (9, 9)) for shade in range(SHOWN + 2)])
    (unit,) = units(layout, Prep(pack=PREP.pack))
    verify(unit)
    shown = [row["picture"] for row in table(layout, "rejected")]
    assert [content is not None for content in shown] == [True] * SHOWN + [False] * 2
    assert Image.open(io.BytesIO(shown[0])).size == (96, 96)
    assert thumbnail(Image.new("RGB", (10, 400))) == thumbnail(Image.new("RGB", (10, 400)))


@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_picture_that_is_one_line_is_a_cause_and_not_the_end(
    downloaded: Callable[..., Layout], crop: Literal["center", "none"]
) -> None:
    """Squares of it would have to be enlarged beyond reason: the stored one, and the one that the report shows."""
    layout = downloaded([picture(0, (20_000, 1)), picture(1, (1_000, 10)), picture(2)])
    (unit,) = units(layout, Prep(pack=Pack(resolution=160, crop=crop)))
    verify(unit)
    shape = "enlarged" if crop == "center" else "stored whole"
    (refused,) = table(layout, "rejected")
    assert (refused["row"], refused["cause"]) == (0, f"too long and narrow to be {shape}")
    assert refused["picture"] is None
    sizes = [(160, 160), (160, 160)] if crop == "center" else [(16_000, 160), (240, 160)]
    assert [(row["width"], row["height"]) for row in table(layout, "samples")] == sizes


def test_a_part_is_told_as_soon_as_its_last_unit_is_verified(downloaded: Any, picture: Any) -> None:
    rows = [b"no picture" if number % 4 == 1 else "HTTP 404" if number == 0 else picture(number) for number in range(9)]
    layout = downloaded(rows, size=3)
    prep = Prep(pack=Pack(resolution=16), download=Download(rows_per_file=3))
    found = units(layout, prep)
    done: list[str] = []

    def each() -> Iterator[str]:
        for unit in found:
            done.append(verify(unit))
            yield done[-1]

    (line,) = by_part(layout, found, each())
    assert line == "part 00000: 6 of 8 pictures are sound; refused: not a picture 2"
    assert len(done) == 3
