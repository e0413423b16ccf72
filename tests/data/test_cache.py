"""The cache folder: what is used stays, the bound holds, nothing of a killed process is left."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bigdiff.config.errors import LastingError, UsageError
from bigdiff.data.cache import Cache, Full, Place, Shelf
from bigdiff.data.manifest import Shard

SIZE = 1000


def shard(number: int, size: int = SIZE) -> Shard:
    content = np.random.default_rng(number).bytes(size)
    return Shard(name=f"{number:05d}", samples=1, bytes=size, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with closing(Shelf(Cache(folder=str(tmp_path / "cache"), bytes=3 * SIZE))) as opened:
        yield opened


def put(shelf: Shelf, *numbers: int, waited: bool = False) -> None:
    for number in numbers:
        place = shelf.begin(shard(number), waited)
        assert isinstance(place, Place), place
        os.pwrite(place.descriptor, np.random.default_rng(number).bytes(SIZE), 0)
        shelf.finish(place)
        time.sleep(0.01)  # their uses are told apart by the file system's clock


def here(shelf: Shelf) -> set[int]:
    return {number for number in range(20) if shelf.has(shard(number).sha256)}


def total(shelf: Shelf) -> int:
    return sum(path.stat().st_size for path in shelf.folder.glob("*.*") if path.suffix != ".wish")


def test_what_was_put_is_opened_again(shelf: Shelf) -> None:
    put(shelf, 1)
    assert shelf.begin(shard(1), True) == "here"
    descriptor = shelf.open(shard(1))
    assert descriptor is not None and os.pread(descriptor, SIZE, 0) == np.random.default_rng(1).bytes(SIZE)
    os.close(descriptor)
    assert shelf.open(shard(2)) is None


def test_the_oldest_use_goes_first_and_what_is_in_use_stays(shelf: Shelf) -> None:
    put(shelf, 1, 2, 3)
    reader = shelf.open(shard(1))
    put(shelf, 4)
    assert here(shelf) == {1, 3, 4} and total(shelf) == 3 * SIZE
    assert reader is not None
    os.close(reader)  # it was used after 3 was put
    put(shelf, 5)
    assert here(shelf) == {1, 4, 5}


def test_reading_ahead_drives_out_nothing_that_any_process_wishes_for(shelf: Shelf) -> None:
    put(shelf, 1, 2, 3)
    with closing(Shelf(shelf.cache)) as other:
        other.wish([], [shard(2), shard(1)])
        shelf.wish([], [shard(3), shard(4)])
        assert isinstance(shelf.begin(shard(4), False), Full)
        assert here(shelf) == {1, 2, 3}
        put(shelf, 4, waited=True)  # takes the last of a list, and not what was used longest ago
        assert here(shelf) == {2, 3, 4}
        other.wish([shard(3)], [])  # 3 is waited for: only 2 and 4 can go
        put(shelf, 5, 6, waited=True)
        assert here(shelf) == {3, 4, 6}
    put(shelf, 7)  # the other's wishes went with it, 3 and 4 are still on this one's list
    assert here(shelf) == {3, 4, 7}
    shelf.wish([], [])
    put(shelf, 8, 9)
    assert here(shelf) == {7, 8, 9}


def test_no_room_says_how_much_is_needed(shelf: Shelf) -> None:
    put(shelf, 1, 2, 3)
    readers = [shelf.open(shard(number)) for number in (1, 2, 3)]
    with closing(Shelf(shelf.cache)) as other:
        other.wish([shard(8), shard(1)], [shard(9)])
        assert shelf.begin(shard(4), True) == Full(unmovable=3 * SIZE, needed=5 * SIZE)
    for reader in readers:
        os.close(reader or 0)
    with pytest.raises(
        LastingError, match=r"00011 has 3,001 bytes and the cache .* is bounded to 3,000: raise data.cache_gb"
    ):
        shelf.begin(shard(11, 3 * SIZE + 1), True)


def test_what_is_on_its_way_counts_in_full_and_is_begun_once(shelf: Shelf) -> None:
    places = [shelf.begin(shard(number), False) for number in (1, 2, 3)]
    assert total(shelf) == 3 * SIZE
    assert shelf.begin(shard(1), True) == "elsewhere"
    assert isinstance(shelf.begin(shard(4), True), Full)
    for place in places:
        assert isinstance(place, Place)
        shelf.abandon(place)
    assert total(shelf) == 0


def test_a_file_that_a_stranger_cut_is_not_trusted(shelf: Shelf) -> None:
    put(shelf, 1)
    os.truncate(shelf.folder / f"{shard(1).sha256}.tar", SIZE - 1)
    assert shelf.open(shard(1)) is None and here(shelf) == set()
    (shelf.folder / "notes.txt").write_text("not ours")
    put(shelf, 1, 2, 3, 4)
    assert (shelf.folder / "notes.txt").read_text() == "not ours"


def test_small_files_are_kept_within_the_bound(shelf: Shelf) -> None:
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]
    shelf.keep(keys[0], b"one")
    shelf.keep(keys[0], b"one again")
    assert shelf.small(keys[0]) == b"one again" and shelf.small(keys[1]) is None
    for key in keys:
        shelf.keep(key, b"x" * 900)
        assert total(shelf) <= 3 * SIZE
    assert shelf.small(keys[7]) == b"x" * 900 and shelf.small(keys[0]) is None
    shelf.keep(keys[0], b"x" * 4000)  # never fits: not kept, no error
    assert shelf.small(keys[0]) is None


KILLED = """
import os, sys, time
from bigdiff.data.cache import Cache, Shelf
from bigdiff.data.manifest import Shard
shelf = Shelf(Cache(folder=sys.argv[1], bytes=3000))
shard = Shard(name="1", samples=1, bytes=1000, sha256=sys.argv[2])
shelf.wish([shard], [])
place = shelf.begin(shard, True)
reader = shelf.open(Shard(name="2", samples=1, bytes=1000, sha256=sys.argv[3]))
assert place.descriptor and reader
sys.stdout.write("ready\\n"); sys.stdout.flush()
time.sleep(60)
"""


def test_a_killed_process_leaves_nothing_that_counts(shelf: Shelf) -> None:
    put(shelf, 2)
    arguments = [sys.executable, "-c", KILLED, str(shelf.folder), shard(1).sha256, shard(2).sha256]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert shelf.begin(shard(1), True) == "elsewhere"
        put(shelf, 3)
        assert isinstance(shelf.begin(shard(4, 2 * SIZE), True), Full)  # the killed one uses 2 and fetches 1
        process.send_signal(signal.SIGKILL)
    put(shelf, 1, 4, 5)
    assert here(shelf) == {1, 4, 5} and total(shelf) == 3 * SIZE
    assert len(list(shelf.folder.glob("*.wish"))) == 1 and not list(shelf.folder.glob("*.part"))


def test_a_folder_that_cannot_be_one_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"data\.cache"):
        Shelf(Cache(folder=str(tmp_path / "file"), bytes=1))


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64])
def test_a_checksum_that_is_none_never_becomes_a_path(shelf: Shelf, digest: str) -> None:
    with pytest.raises(UsageError, match="sha256"):
        shelf.open(Shard(name="1", samples=1, bytes=1, sha256=digest))


def test_closing_withdraws_the_wishes(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    shelf = Shelf(Cache(folder=str(tmp_path), bytes=1))
    shelf.wish([shard(1)], [shard(2)])
    shelf.close()
    shelf.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]
    assert len(os.listdir("/proc/self/fd")) == before
