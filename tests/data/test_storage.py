"""Sets in folders, behind a real HTTP server and in a real S3 server, through a node's shared cache."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data.cache import Cache
from bigdiff.data.manifest import Shard
from bigdiff.data.storage import Absent, Corrupt, Storage, open_storage

SIZE = 400_000
Made = Callable[..., list[Shard]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Storage]]:
    """Open a storage with a cache of so many shards' bytes; closed when the test ends."""
    with ExitStack() as storages:

        def make(location: str, shards: float = 100, **settings: float) -> Storage:
            given: dict[str, Any] = {"threads": 4, "patience_seconds": 5.0, "stall_seconds": 0.5, **settings}
            cache = Cache(folder=str(tmp_path / "cache"), bytes=int(shards * SIZE), **given)
            return storages.enter_context(closing(open_storage(location, cache, say=lambda _: None)))

        yield make


def content(storage: Storage, shard: Shard) -> str:
    descriptor = storage.open(shard)
    try:
        return hashlib.sha256(os.pread(descriptor, shard.bytes + 1, 0)).hexdigest()
    finally:
        os.close(descriptor)


def cached(tmp_path: Path) -> int:
    """Bytes in the cache folder; a file that is renamed meanwhile may count twice, never not at all."""
    sizes: dict[int, int] = {}
    for _ in range(2):
        for entry in os.scandir(tmp_path / "cache"):
            if entry.name.endswith((".tar", ".part", ".small")):
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def wait_until(what: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_folder_needs_no_cache(plain_set: Made, tmp_path: Path) -> None:
    (shard,) = plain_set(SIZE)
    with closing(open_storage(str(tmp_path / "set"), None)) as storage:
        assert content(storage, shard) == shard.sha256


@pytest.mark.parametrize(
    "location", ["ftp://host/set", "gs://bucket/set", "file:///set", "http://", "http://u:secret@h/s"]
)
def test_other_places_are_usage_errors_that_tell_no_secret(location: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_storage(location, Cache(folder=str(tmp_path), bytes=1))
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match=r"data\.cache"):
        open_storage("http://host/set", None)


def test_a_query_goes_with_requests_and_into_no_message(
    serve: Any, plain_set: Made, tmp_path: Path, opened: Any
) -> None:
    (shard,) = plain_set(SIZE)
    storage = opened(f"{serve(tmp_path).location}/set/?token=secret")
    assert content(storage, shard) == shard.sha256
    with pytest.raises(Absent) as caught:
        storage.read("absent.json")
    assert "secret" not in str(caught.value) and "/set/absent.json" in str(caught.value)


def test_wishes_are_fetched_once_in_order(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    shards = plain_set(*[SIZE] * 12)
    served = serve(tmp_path / "set", latency=0.03)
    storage = opened(served.location, shards=6, threads=1)
    began = time.monotonic()
    storage.want(shards)
    assert time.monotonic() - began < 0.02
    wait_until(lambda: len(served.counts()) == 6)
    assert content(storage, shards[0]) == shards[0].sha256
    time.sleep(1.2)  # no more fit beside what is wished for
    assert list(served.counts()) == [f"/{number:05d}.tar" for number in range(6)]
    storage.want(shards[3:])
    wait_until(lambda: len(served.counts()) == 9)
    assert cached(tmp_path) <= 6 * SIZE
    assert content(storage, shards[11]) == shards[11].sha256  # not its turn, but it is waited for
    assert max(served.counts().values()) == 1


def test_seeded_faults_lose_nothing(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    shards = plain_set(*[SIZE] * 40)
    served = serve(
        tmp_path / "set", latency=0.03, faults=0.2, seed=3, kinds=["500", "503", "reset", "short", "stall", "wrong"]
    )
    storage = opened(served.location)
    storage.want(shards)
    assert [content(storage, shard) for shard in shards] == [shard.sha256 for shard in shards]
    assert len(served.counts("faults")) >= 4


def test_damage_is_told_and_its_mending_seen(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    shards = plain_set(*[SIZE] * 3)
    tar = tmp_path / "set/00001.tar"
    good = tar.read_bytes()
    tar.write_bytes(b"?" + good[1:])
    served = serve(tmp_path / "set", planted={"/00002.tar": ["404", "404"]})
    storage = opened(served.location)
    storage.want(shards)
    assert content(storage, shards[0]) == shards[0].sha256
    with pytest.raises(Corrupt, match=r"00001\.tar has sha256 .*the manifest says"):
        storage.open(shards[1])
    with pytest.raises(Absent, match=r"00002\.tar"):
        storage.open(shards[2])
    assert cached(tmp_path) == SIZE
    tar.write_bytes(good)
    assert content(storage, shards[1]) == shards[1].sha256
    wait_until(lambda: served.counts()["/00002.tar"] >= 1)


def test_an_index_is_sent_when_it_changed(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    plain_set(SIZE)
    served, index = serve(tmp_path / "set"), tmp_path / "set/00000.parquet"
    for _ in range(3):
        assert opened(served.location).read("00000.parquet") == index.read_bytes()
    assert served.counts("bytes") == {"/00000.parquet": index.stat().st_size} and served.counts()["/00000.parquet"] == 3
    index.write_bytes(b"mended")
    assert opened(served.location).read("00000.parquet") == b"mended"


def test_a_cache_without_room_says_how_much_it_needs(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    shards = plain_set(*[SIZE] * 4)
    served = serve(tmp_path / "set")
    storage = opened(served.location, shards=2, patience_seconds=0.8, stall_seconds=0.2)
    held = [storage.open(shard) for shard in shards[:2]]
    with pytest.raises(RunError, match=rf"00002\.tar .*800,000 of 800,000 bytes are.*cache_gb.*\({3 * SIZE:,} bytes\)"):
        storage.open(shards[2])
    release = threading.Timer(0.4, os.close, [held[0]])
    release.start()
    assert content(storage, shards[3]) == shards[3].sha256
    os.close(held[1])


def test_readers_that_hold_shards_come_through(serve: Any, plain_set: Made, tmp_path: Path, opened: Any) -> None:
    """Two ranks wish for more than fits and wait for each other: what one only wishes for makes room for the other."""
    shards = plain_set(*[SIZE] * 10)
    served = serve(tmp_path / "set")
    first, second = opened(served.location, shards=4), opened(served.location, shards=4)
    first.want(shards[:5])
    wait_until(lambda: len(served.counts()) == 4)
    held = [second.open(shards[9]), first.open(shards[0]), second.open(shards[8]), first.open(shards[1])]
    assert cached(tmp_path) <= 4 * SIZE
    for descriptor in held:
        os.close(descriptor)


@pytest.mark.parametrize("planted", [["stall!"], ["503!"], []])
def test_nothing_is_left_after_close(
    planted: list[str], serve: Any, plain_set: Made, tmp_path: Path, opened: Any
) -> None:
    shards = plain_set(*[SIZE] * 8)
    served = serve(tmp_path / "set", planted={f"/{shard.name}.tar": planted for shard in shards}, link=2e6)
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    storage = opened(served.location, stall_seconds=20, patience_seconds=60)
    storage.want(shards)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            storage.open(shards[7])
        except RunError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: len(served.counts()) >= 4)
    began = time.monotonic()
    storage.close()
    reader.join(5)
    assert time.monotonic() - began < 1.0
    assert "was closed" in str(failures[0])
    assert set(threading.enumerate()) == threads and len(os.listdir("/proc/self/fd")) == descriptors
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {"", ".tar"}


RANK = """
import hashlib, json, os, random, sys, time
from bigdiff.data.cache import Cache
from bigdiff.data.manifest import Shard
from bigdiff.data.storage import open_storage
location, folder, bound, seed, shards = json.loads(sys.argv[1])
shards = [Shard(**shard) for shard in shards]
storage = open_storage(location, Cache(folder=folder, bytes=bound, threads=2, patience_seconds=20, stall_seconds=2))
try:
    storage.want(shards)
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    for number, shard in enumerate(shards):
        descriptor = storage.open(shard)
        storage.want(shards[number + 1 : number + 6])
        time.sleep(random.Random(seed * 1000 + number).uniform(0, 0.02))
        assert hashlib.sha256(os.pread(descriptor, shard.bytes + 1, 0)).hexdigest() == shard.sha256
        os.close(descriptor)
    sys.stdout.write("done\\n")
finally:
    storage.close()
"""


def start_rank(location: str, folder: Path, bound: int, seed: int, shards: list[Shard]) -> subprocess.Popen[str]:
    fields = [{name: getattr(shard, name) for name in ("name", "samples", "bytes", "sha256")} for shard in shards]
    given = json.dumps([location, str(folder), bound, seed, fields])
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", RANK, given], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_one_fetch_per_node_whatever_the_ranks(serve: Any, plain_set: Made, tmp_path: Path) -> None:
    shards = plain_set(*[SIZE] * 24)
    served = serve(tmp_path / "set", latency=0.03, link=20e6)
    ranks = [start_rank(served.location, tmp_path / "cache", 24 * SIZE, seed, shards) for seed in range(4)]
    for rank in ranks:
        out, error = rank.communicate(timeout=50)
        assert out == "ready\ndone\n", error
    assert served.counts() == {f"/{shard.name}.tar": 1 for shard in shards}
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {"", ".tar"}


def test_a_killed_rank_and_a_tight_bound(serve: Any, plain_set: Made, tmp_path: Path) -> None:
    shards = plain_set(*[SIZE] * 24)
    served = serve(tmp_path / "set", latency=0.03, link=4e6, faults=0.05, kinds=["500", "reset", "short"])
    bound = 10 * SIZE
    ranks = [start_rank(served.location, tmp_path / "cache", bound, seed, shards) for seed in range(3)]
    assert ranks[0].stdout is not None and ranks[0].stdout.readline() == "ready\n"
    wait_until(lambda: bool(list((tmp_path / "cache").glob("*.part"))))
    time.sleep(0.2)
    ranks[0].send_signal(signal.SIGKILL)
    most = 0
    while any(rank.poll() is None for rank in ranks[1:]):
        most = max(most, cached(tmp_path))
        time.sleep(0.005)
    for rank in ranks[1:]:
        out, error = rank.communicate()
        assert out == "ready\ndone\n", error
    ranks[0].communicate()
    assert 5 * SIZE < most <= bound
    assert sum(served.counts().values()) < 2 * len(shards)  # each once, but for faults and what the killed one began


def test_ctrl_c_leaves_nothing(serve: Any, plain_set: Made, tmp_path: Path) -> None:
    shards = plain_set(SIZE)
    served = serve(tmp_path / "set", planted={"/00000.tar": ["stall!"]})
    with start_rank(served.location, tmp_path / "cache", 24 * SIZE, 0, shards) as rank:
        wait_until(lambda: bool(served.counts()))
        rank.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, error = rank.communicate(timeout=10)
        assert "KeyboardInterrupt" in error and time.monotonic() - began < 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
