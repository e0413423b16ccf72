from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.images import Framing, ImageReader, ImageSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches
from bigdiff.prep import folder


def draw(where: Path, count: int) -> None:
    """Pictures of one level each, in two folders and two formats, two captions, and two files that are no pictures."""
    for number in range(count):
        kind = "png" if number % 2 else "jpg"
        file = where / ("odd" if number % 2 else "even") / f"{number}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 12), 10 * number, np.uint8)).save(file)
    (where / "odd" / "1.txt").write_text(" a dark square\n")
    (where / "odd" / "3.txt").write_text("one that is lighter")
    (where / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    (where / "notes.md").write_text("no picture")


def test_a_folder_becomes_a_set_that_the_stream_and_webdataset_read(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 12)
    said: list[str] = []
    made = folder.pack(tmp_path / "pictures", tmp_path / "set", 5, 0, said.append)
    assert made.samples == 12 and len(made.shards) == 3 and len(said) == 1 and said[0].startswith("left out: 1 files")
    with ImageSet(str(tmp_path / "set")) as images:
        assert images.manifest == made == manifest.read(tmp_path / "set", "images")
        path = Course(sources=(Source(name="set", sizes=made.sizes),), seed=0, window=8, lanes=1, total=12)
        reader = ImageReader([images], Framing(resolution=10))
        (batch,) = next(batches(reader, path, Slice(total=12, micro=12, rank=0, size=1), 0, Ahead(), Quarantine()))
        levels = [round(float(picture.float().mean()) / 10) for picture in batch.pixels]
    assert sorted(levels) == list(range(12))
    captions = dict(zip(levels, batch.captions, strict=True))
    assert (captions[1], captions[3], captions[5]) == ("a dark square", "one that is lighter", "")
    tars = sorted(str(tar) for tar in (tmp_path / "set").glob("*.tar"))
    stock = list(wds.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert len(stock) == 12
    assert sorted(round(float(one.get("jpg", one.get("png")).mean()) / 10) for one in stock) == list(range(12))


def test_the_seed_shuffles_and_the_same_one_gives_the_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 8)
    prints = []
    for number, seed in enumerate((0, 0, 1)):
        folder.pack(tmp_path / "pictures", tmp_path / f"set{number}", 4, seed, lambda _: None)
        prints.append([shard.sha256 for shard in manifest.read(tmp_path / f"set{number}", "images").shards])
    assert prints[0] == prints[1] != prints[2]


def test_what_is_no_folder_of_pictures_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        folder.pack(tmp_path / "nowhere", tmp_path / "set", 4, 0, print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        folder.pack(tmp_path / "empty", tmp_path / "set", 4, 0, print)
    (tmp_path / "empty" / "a.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="can be decoded"):
        folder.pack(tmp_path / "empty", tmp_path / "set", 4, 0, lambda _: None)
    draw(tmp_path / "pictures", 2)
    with pytest.raises(UsageError, match="is not empty"):
        folder.pack(tmp_path / "pictures", tmp_path / "set", 4, 0, print)
    (tmp_path / "pictures" / "odd" / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"1\.txt is not UTF-8"):
        folder.pack(tmp_path / "pictures", tmp_path / "other", 4, 0, lambda _: None)
