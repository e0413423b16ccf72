import hashlib
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
import xxhash

from bigdiff.config.errors import RunError
from bigdiff.data.index import columns, located, members, picture_member, places, scan


def write_tar(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, payload in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))


def test_the_bytes_at_the_offsets_are_the_members(tmp_path: Path) -> None:
    numbers = random.Random(0)
    content = {
        f"{key:06d}.{extension}": numbers.randbytes(numbers.randrange(0, 3000))
        for key in range(20)
        for extension in ("json", "seg.png")
    }
    tar = tmp_path / "a.tar"
    write_tar(tar, content)
    raw = tar.read_bytes()
    found = members(tar)
    assert list(found) == [f"{key:06d}" for key in range(20)]
    for key, parts in found.items():
        for extension, (offset, length, xxh3) in parts.items():
            payload = raw[offset : offset + length]
            assert payload == content[f"{key}.{extension}"]
            assert xxh3 == xxhash.xxh3_64_intdigest(payload)
            assert places(tar)[key][extension] == (offset, length)
    found_at_once = scan(tar)
    assert found_at_once.members == found
    assert (found_at_once.bytes, found_at_once.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_stock_webdatasets_own_tar_has_the_same_keys_and_bytes(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    with webdataset.TarWriter(str(tar)) as writer:
        for number in range(5):
            writer.write({"__key__": f"sub/{number:03d}", "txt": f"caption {number}", "bin": bytes([number]) * 700})
    raw, found = tar.read_bytes(), members(tar)
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(found)
    for sample in samples:
        for extension, (offset, length, _) in found[sample["__key__"]].items():
            assert raw[offset : offset + length] == sample[extension]


def test_columns_follow_the_asked_order(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {"a.txt": b"1", "b.txt": b"22", "c.txt": b"333"})
    found = members(tar)
    table = columns(["c", "a"], found)
    assert list(table) == ["txt_offset", "txt_length", "txt_xxh3"]
    for part, values in zip(("offset", "length", "xxh3"), zip(*(found[key]["txt"] for key in "ca"), strict=True)):  # noqa: B905
        assert table[f"txt_{part}"].tolist() == list(values)
    assert columns([], {}) == {}


def test_a_checksum_beyond_int64_keeps_its_type_in_parquet(tmp_path: Path) -> None:
    content = next(bytes([n]) for n in range(256) if xxhash.xxh3_64_intdigest(bytes([n])) >= 2**63)
    write_tar(tmp_path / "a.tar", {"a.txt": content})
    table = pa.table(columns(["a"], members(tmp_path / "a.tar")))
    assert [table.schema.field(name).type for name in table.column_names] == [pa.int64(), pa.int64(), pa.uint64()]
    assert table["txt_xxh3"].to_pylist() == [xxhash.xxh3_64_intdigest(content)]
    assert table["txt_xxh3"].to_numpy().dtype == np.uint64


def test_pictures_are_found_by_the_columns_that_locate_them() -> None:
    assert picture_member(["key", "png_offset", "png_length", "txt_offset", "txt_length"]) == "png"
    assert picture_member(["image_ext", "image_offset", "image_length"]) == "image"
    assert picture_member(["jpg_offset", "txt_offset", "txt_length"]) is None


def test_a_fact_that_is_named_like_a_place_is_a_fact() -> None:
    found = {f"{end}_{part}" for end in ("jpg", "txt") for part in ("offset", "length", "xxh3")}
    assert located({*found, "caption_length", "key"}) == ["jpg", "txt"]


def test_samples_of_different_members_are_refused(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {"a.txt": b"1", "a.bin": b"1", "b.txt": b"22"})
    with pytest.raises(RunError, match=r"sample b has members \['txt'\]"):
        columns(["a", "b"], members(tar))


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/passwd.txt", "a/../../b.txt"])
def test_a_path_out_of_the_set_is_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "a.tar", {name: b"1"})
    with pytest.raises(RunError, match="not a plain file inside the set"):
        members(tmp_path / "a.tar")


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(RunError, match="not a plain file"):
        members(tmp_path / "a.tar")


@pytest.mark.parametrize("damage", ["cut header", "cut payload", "cut end", "garbage", "gzip"])
def test_a_damaged_tar_is_named(tmp_path: Path, damage: str) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {"a.txt": b"1" * 5000, "b.txt": b"2" * 5000})
    raw = tar.read_bytes()
    kept = {"cut header": 6000, "cut payload": 8000, "cut end": 2 * (512 + 5120) + 512}
    broken = {"garbage": b"x" * 10240, "gzip": b"\x1f\x8b" + raw}
    tar.write_bytes(broken[damage] if damage in broken else raw[: kept[damage]])
    for read in (members, places):
        with pytest.raises(RunError, match=r"a\.tar is damaged .*rebuild the shard"):
            read(tar)
