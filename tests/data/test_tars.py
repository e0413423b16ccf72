import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import xxhash
from webdataset.tariterators import base_plus_ext

from bigdiff.data.tars import BLOCK, TarFile, split


def write(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], **options: int) -> bytes:
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_checksums_and_the_whole_files_sha256(tmp_path: Path, form: int) -> None:
    sizes = [0, 1, 511, 512, 513, BLOCK - 1, BLOCK, 2 * BLOCK + 7]
    contents = {f"{'long/' * 40 * (form != tarfile.USTAR_FORMAT)}{size}.bin": os.urandom(size) for size in sizes}
    raw = write(tmp_path / "a.tar", [(member(name, len(one)), one) for name, one in contents.items()], format=form)
    with TarFile(tmp_path / "a.tar", checksums=True) as opened:
        entries = list(opened)
        assert [entry.name for entry in entries] == list(contents)
        for entry, content in zip(entries, contents.values(), strict=True):
            assert entry.plain
            assert raw[entry.offset : entry.offset + entry.length] == content == opened.read(entry)
            assert opened.read(entry, 3) == content[:3]
            assert entry.xxh3 == xxhash.xxh3_64_intdigest(content)
        assert opened.finish() == (len(raw), hashlib.sha256(raw).hexdigest())
    with TarFile(tmp_path / "a.tar", checksums=False) as opened:
        assert [(one.name, one.offset, one.length, 0) for one in entries] == [
            (one.name, one.offset, one.length, one.xxh3) for one in opened
        ]


@pytest.mark.parametrize("name", ["../a.txt", "/a.txt", "a/../../b.txt"])
def test_what_leaves_the_set_is_not_plain(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.tar", [(member(name, 1), b"1")])
    with TarFile(tmp_path / "a.tar", checksums=True) as opened:
        assert [entry.plain for entry in opened] == [False]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_is_not_plain(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path / "a.tar", [(member("a.txt", kind=kind), b""), (member("b.txt", 1), b"1")])
    with TarFile(tmp_path / "a.tar", checksums=True) as opened:
        assert [entry.plain for entry in opened] == [False, True]


def test_a_sparse_member_is_not_plain_as_its_bytes_are_not_in_one_piece(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "a.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 19, "tar found no hole"
    with TarFile(tmp_path / "a.tar", checksums=True) as opened:
        assert [entry.plain for entry in opened] == [False]


@pytest.mark.parametrize("kept", [300, 512, 700, 1100, 1536, 1800])
def test_a_cut_tar_gives_what_lies_in_front_of_the_cut_and_its_whole_checksum(tmp_path: Path, kept: int) -> None:
    raw = write(tmp_path / "a.tar", [(member("a.txt", 100), b"a" * 100), (member("b.txt", 400), b"b" * 400)])[:kept]
    (tmp_path / "a.tar").write_bytes(raw)
    seen = []
    with TarFile(tmp_path / "a.tar", checksums=True) as opened:
        with pytest.raises(tarfile.TarError):
            for entry in opened:
                seen.append(entry.name)
        assert opened.finish() == (kept, hashlib.sha256(raw).hexdigest())
    assert seen == ["a.txt", "b.txt"][: (kept >= 612) + (kept >= 1936)]


def test_a_negative_size_is_damage_and_no_endless_loop(tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "a.tar", [(member("a.txt", 1), b"1")]))
    raw[124:136] = (256**12 - 512).to_bytes(12, "big")  # base 256, two's complement
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(raw)
    with TarFile(tmp_path / "a.tar", checksums=True) as opened, pytest.raises(tarfile.TarError, match="negative size"):
        list(opened)


MEMORY = """
import resource, sys
from pathlib import Path
from bigdiff.data.tars import TarFile
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
with TarFile(Path(sys.argv[1]), checksums=True) as opened:
    count = sum(1 for _ in opened)
    opened.finish()
print(count, peak() - before)
"""


def test_memory_is_a_block_whatever_the_tar(tmp_path: Path) -> None:
    info = member("big.bin", 64 * BLOCK)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info, io.BytesIO(bytes(info.size)))
        for number in range(3000):
            archive.addfile(member(f"{number}.txt"))
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.tar")], check=True, capture_output=True, text=True
    )
    count, grown = map(int, result.stdout.split())
    assert count == 3001
    assert grown < 8 * BLOCK, grown


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [(member("a.txt", 1), b"1")])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with TarFile(tmp_path / "a.tar", checksums=True) as opened:
            next(iter(opened))  # left half way
    assert len(os.listdir("/proc/self/fd")) <= before


def test_names_are_split_as_webdataset_splits_them() -> None:
    for name in ("000.jpg", "a.b/000.seg.png", "./000.jpg", "a/b/c.tar.gz", "x."):
        assert split(name) == base_plus_ext(name)
    assert split(".hidden") == ("", "hidden")
    assert split("a/plain") == ("a/plain", "")
