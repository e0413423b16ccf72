"""A set in a folder: what is there, what is wrong with it, and what the disk is told."""

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.local import Local
from bigdiff.data.manifest import Shard
from bigdiff.data.transfer import Absent, Corrupt

SIZE = 1 << 20
Made = Callable[..., list[Shard]]


def test_what_is_there_and_what_is_not(plain_set: Made, tmp_path: Path) -> None:
    shards = plain_set(SIZE, SIZE)
    with closing(Local(tmp_path / "set")) as storage:
        descriptor = storage.open(shards[0])
        assert os.pread(descriptor, SIZE + 1, 0) == (tmp_path / "set/00000.tar").read_bytes()
        os.close(descriptor)
        assert storage.read("00000.parquet").startswith(b"index ")
        os.truncate(tmp_path / "set/00001.tar", SIZE - 1)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Corrupt, match=f"{SIZE - 1} bytes, the manifest says {SIZE}"):
            storage.open(shards[1])
        (tmp_path / "set/00001.tar").unlink()
        with pytest.raises(Absent):
            storage.open(shards[1])
        with pytest.raises(Absent):
            storage.read("manifest.json")
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".hidden", ""])
def test_a_name_cannot_lead_out_of_the_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name of a file"):
        Local(tmp_path).read(name)


def pages(path: Path) -> float:
    """Share of the file that is in the page cache, by mincore."""
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        count = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * count)()
        first = ctypes.c_char.from_buffer(mapped)
        assert not ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), found)
        del first
        return sum(one & 1 for one in found) / count


def test_wishes_are_read_in_order_up_to_the_bound_and_nothing_is_left(plain_set: Made, tmp_path: Path) -> None:
    shards, paths = plain_set(*[SIZE] * 4), [tmp_path / f"set/{number:05d}.tar" for number in range(4)]
    for path in paths:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages(paths[0]) > 0.1:
        pytest.skip("this file system keeps files in memory")
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with closing(Local(tmp_path / "set", ahead=2 * SIZE)) as storage:
        assert set(threading.enumerate()) == threads
        storage.want([Shard(name="absent", samples=1, bytes=0, sha256="0" * 64), *shards])
        until = time.monotonic() + 10
        while pages(paths[1]) < 1:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert pages(paths[0]) == 1 and pages(paths[2]) < 0.1
        storage.want(shards[2:])
        while pages(paths[3]) < 1:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert set(threading.enumerate()) == threads and len(os.listdir("/proc/self/fd")) == descriptors
    storage.want(shards)  # after close: nothing
    assert set(threading.enumerate()) == threads
