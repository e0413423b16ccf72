import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.prep import Pack, Prep
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest
from bigdiff.prep import adopt
from bigdiff.prep.layout import Layout
from bigdiff.runtime.files import sha256

PackedSet = Callable[..., Path]
PREP = Prep(pack=Pack(resolution=16, samples_per_shard=3, format="png"))


@pytest.fixture
def made(packed_set: PackedSet, picture: Callable[[int], bytes]) -> Callable[[int], Path]:
    return lambda count: packed_set([picture(number) for number in range(count)], PREP)


def taken_over(images: Path, output: Path, without: tuple[str, ...] = ()) -> Layout:
    for task in adopt.tasks(output, images, adopt.open_set(images), without):
        adopt.adopt(task)
    return Layout(output)


def test_facts_and_bytes_are_those_of_the_set(made: Callable[[int], Path], tmp_path: Path) -> None:
    images = made(5)
    layout = taken_over(images, tmp_path / "new")
    rows = []
    for file in sorted(layout.samples.glob("*.parquet")):
        old = pq.read_table(images / file.name).to_pylist()
        new = pq.read_table(file).to_pylist()
        for before, now in zip(old, new, strict=True):
            rows.append(now.pop("row"))
            content = (layout.pictures / file.stem).read_bytes()
            tar = (images / f"{file.stem}.tar").read_bytes()
            offset, length = now.pop("offset"), now.pop("length")
            assert content[offset : offset + length] == tar[before["png_offset"] :][: before["png_length"]]
            assert now == {key: before[key] for key in now}
            assert set(before) - set(now) == {
                f"{end}_{part}" for end in ("png", "txt", "json") for part in ("offset", "length", "xxh3")
            }
    assert rows == list(range(5))


def test_a_set_without_hashes_gets_those_of_its_stored_pictures(made: Callable[[int], Path], tmp_path: Path) -> None:
    images = made(3)
    file = images / "00000.parquet"
    index = pq.read_table(file)
    pq.write_table(index.drop_columns(["phash"]), file)
    found = manifest.read(images, "images")
    shards = tuple(replace(shard, index_sha256=sha256(images / f"{shard.name}.parquet")) for shard in found.shards)
    manifest.write(images, replace(found, shards=shards))
    layout = taken_over(images, tmp_path / "new")
    assert pq.read_table(layout.samples / "00000.parquet")["phash"].equals(index["phash"])  # PNG: no pixel changed


def test_columns_that_are_made_anew_are_left_behind(made: Callable[[int], Path], tmp_path: Path) -> None:
    images = made(2)
    layout = taken_over(images, tmp_path / "new", without=("original_width",))
    names = pq.read_schema(layout.samples / "00000.parquet").names
    assert "original_width" not in names
    assert "original_height" in names


def test_what_is_taken_over_is_not_taken_over_again(made: Callable[[int], Path], tmp_path: Path) -> None:
    images = made(2)
    layout = taken_over(images, tmp_path / "new")
    shutil.rmtree(images)
    (task,) = [
        adopt.Task(
            output=tmp_path / "new",
            images=images,
            shard=manifest.Shard(name="00000", samples=2, bytes=1, sha256=""),
            first=0,
            format="png",
            without=(),
        )
    ]
    assert adopt.adopt(task) == "00000"
    assert (layout.samples / "00000.parquet").exists()


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_damage_is_named_before_it_is_copied(made: Callable[[int], Path], tmp_path: Path, ending: str) -> None:
    images = made(2)
    content = bytearray((images / f"00000{ending}").read_bytes())
    content[len(content) // 2] ^= 1
    (images / f"00000{ending}").write_bytes(content)
    with pytest.raises(RunError, match=f"00000{ending} is not what the set's manifest says"):
        taken_over(images, tmp_path / "new")


def test_a_set_without_a_contract_is_refused(made: Callable[[int], Path], tmp_path: Path) -> None:
    images = made(2)
    found = manifest.read(images, "images")
    manifest.write(images, Manifest(kind="images", shards=found.shards, contract={}))
    with pytest.raises(UsageError, match=r"name a set of build_shards\.py"):
        adopt.open_set(images)
