import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.data.decoding import decode
from bigdiff.evaluate import pictures, sampling
from bigdiff.evaluate.pictures import Drawn, Stored, opened
from bigdiff.evaluate.sampling import Sampling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of different sizes, in two folders, beside files that are none."""
    for number in range(10):
        file = tmp_path / "set" / ("a" if number % 2 else "b") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number, 12, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    return tmp_path / "set"


def levels(some: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(one) for one in some]


def test_a_folder_is_its_pictures_by_name(folder: Path) -> None:
    found = opened(Stored(place=str(folder)))
    assert found.count == 10
    names = [f"a/{number:02d}.png" for number in range(1, 10, 2)] + [
        f"b/{number:02d}.png" for number in range(0, 10, 2)
    ]
    for one, name in zip(levels(found.some(0, 10)), names, strict=True):
        np.testing.assert_array_equal(one, decode((folder / name).read_bytes()))
    np.testing.assert_array_equal(levels(found.some(4, 6))[1], levels(found.some(0, 10))[5])
    assert found.captions(0, 3) == []


def test_the_identity_is_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    first = opened(Stored(place=str(folder))).identity()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "notes.txt").write_text("other notes")
    assert opened(Stored(place=str(moved))).identity() == first
    Image.new("RGB", (3, 3)).save(moved / "a" / "01.png")
    changed = pictures.digest(moved, pictures.of_folder(moved))
    (moved / "a" / "01.png").rename(moved / "a" / "02.png")
    assert len({first, changed, pictures.digest(moved, pictures.of_folder(moved))}) == 3


def test_a_square_is_the_middle(folder: Path) -> None:
    whole, square = opened(Stored(place=str(folder))), opened(Stored(place=str(folder), crop="center"))
    for one, part in zip(levels(whole.some(0, 10)), levels(square.some(0, 10)), strict=True):
        height, width, _ = one.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        np.testing.assert_array_equal(part, one[top : top + side, left : left + side])


def test_a_shard_set_is_its_pictures_in_order(image_set: Callable[..., Path]) -> None:
    place = image_set(3, 4)
    found = opened(Stored(place=str(place)))
    assert found.count == 7
    seen = levels(found.some(0, 7))
    sizes = [(20 + row, 24 + shard) for shard, rows in ((0, 3), (1, 4)) for row in range(rows)]
    assert [(one.shape[1], one.shape[0]) for one in seen] == sizes
    np.testing.assert_array_equal(levels(found.some(4, 5))[0], seen[4])
    assert len(found.identity()) == 64


def test_a_damaged_sample_and_an_address_are_refused(image_set: Callable[..., Path]) -> None:
    place = image_set(2)
    offset = pq.read_table(place / "00000.parquet")["jpg_offset"][1].as_py()
    with (place / "00000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(40))
    found = opened(Stored(place=str(place)))
    assert len(found.some(0, 1)) == 1
    with pytest.raises(UsageError, match=r"00000\.tar: sample 1 cannot be judged \(.*\): rebuild the set"):
        found.some(0, 2)
    with pytest.raises(UsageError, match=r"s3://bucket/set is an address: .* copy the set"):
        opened(Stored(place="s3://bucket/set"))


def test_what_is_drawn_depends_on_the_position_alone(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green thing\n")
    source = Drawn(
        pipeline=pipeline,
        prompts=tmp_path / "prompts.txt",
        column="",
        count=3,
        settings=Sampling(steps=2, batch=2),
        dtype="float32",
    )
    found = opened(source)
    assert found.captions(1, 3) == ["a blue square", "a green thing"]
    texts = sampling.read_prompts(tmp_path / "prompts.txt")
    expected = levels(sampling.sample(sampling.load(pipeline), texts, source.settings))
    for one, right in zip(levels(found.some(1, 3)), expected[1:], strict=True):
        assert np.abs(one.astype(int) - right.astype(int)).max() <= 1
    copied = shutil.copytree(pipeline, tmp_path / "copy")
    (copied / "README.md").write_text("another card")
    copy = replace(source, pipeline=copied)
    assert opened(copy).identity() == found.identity()
    (copied / "scheduler" / "scheduler_config.json").write_text("{}")
    assert opened(copy).identity() != found.identity()
    half = levels(opened(replace(source, dtype="bfloat16")).some(0, 1))[0]
    assert 0 < np.abs(half.astype(int) - expected[0].astype(int)).max() < 64


def test_what_cannot_be_judged_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "03.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"a/03\.png is no picture that can be judged \(not a picture\): delete"):
        opened(Stored(place=str(folder))).some(0, 3)
    Image.fromarray(np.full((4, 4), np.nan, np.float32), "F").save(folder / "a" / "03.tiff")
    (folder / "a" / "03.tiff").rename(folder / "a" / "03.png")
    with pytest.raises(UsageError, match=r"a/03\.png is no picture"):
        opened(Stored(place=str(folder))).some(0, 3)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"has 2 prompts and .* 10 pictures"):
        opened(Stored(place=str(folder), prompts=tmp_path / "prompts.txt"))
    (tmp_path / "empty").mkdir()
    for name, sentence in (("absent", "is no folder"), ("empty", "holds no pictures")):
        with pytest.raises(UsageError, match=sentence):
            opened(Stored(place=str(tmp_path / name)))
