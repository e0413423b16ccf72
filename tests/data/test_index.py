import io
import random
import tarfile
from pathlib import Path

import pytest
import webdataset

from bigdiff.config.errors import RunError
from bigdiff.data.index import columns, members


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
        for extension, (offset, length) in parts.items():
            assert raw[offset : offset + length] == content[f"{key}.{extension}"]


def test_stock_webdatasets_own_tar_has_the_same_keys_and_bytes(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    with webdataset.TarWriter(str(tar)) as writer:
        for number in range(5):
            writer.write({"__key__": f"sub/{number:03d}", "txt": f"caption {number}", "bin": bytes([number]) * 700})
    raw, found = tar.read_bytes(), members(tar)
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(found)
    for sample in samples:
        for extension, (offset, length) in found[sample["__key__"]].items():
            assert raw[offset : offset + length] == sample[extension]


def test_columns_follow_the_asked_order(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {"a.txt": b"1", "b.txt": b"22", "c.txt": b"333"})
    found = members(tar)
    table = columns(["c", "a"], found)
    assert table == {"txt_offset": [found["c"]["txt"][0], found["a"]["txt"][0]], "txt_length": [3, 1]}
    assert columns([], {}) == {}


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
    with pytest.raises(RunError, match=r"a\.tar is damaged .*rebuild the shard"):
        members(tar)
