"""One file over a real HTTP server that fails in every way it can."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import origin
from bigdiff.data.transfer import Absent, Corrupt, Patience, Transfer, pause, retry_after

SIZE = 3_000_000
PATH = "/00000.tar"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def fetch(served: Any, shard: Shard, target: int, said: list[str], **patience: float) -> bytes:
    given = Patience(**{"seconds": 5.0, "stall_seconds": 0.5, **patience})
    with closing(Transfer(origin(served.location), given, said.append)) as transfer:
        transfer.fetch(f"{shard.name}.tar", shard.bytes, shard.sha256, target)
    return os.pread(target, SIZE + 1, 0)


@pytest.mark.parametrize(
    "kinds", [[], ["500"], ["503"], ["reset"], ["short"], ["stall"], ["redirect"], ["403"], ["wrong"]]
)
def test_a_passing_fault_costs_little_and_no_byte_is_wrong(
    kinds: list[str],
    serve: Callable[..., Any],
    plain_set: Callable[..., list[Shard]],
    tmp_path: Path,
    target: int,
    said: list[str],
) -> None:
    (shard,) = plain_set(SIZE)
    served = serve(tmp_path / "set", planted={PATH: kinds})
    began = time.monotonic()
    assert hashlib.sha256(fetch(served, shard, target, said)).hexdigest() == shard.sha256
    took = time.monotonic() - began
    assert served.counts()[PATH] == len(kinds) + 1
    # what came before the fault is not sent again, unless it was wrong; a reset may destroy what was not yet read
    whole = SIZE * (2 if kinds == ["wrong"] else 1.5 if kinds == ["reset"] else 1)
    assert served.counts("bytes")[PATH] <= whole + (1 << 20)
    if kinds == ["503"]:
        assert took >= 1.0  # Retry-After
    if kinds == ["stall"]:
        assert f"at offset {SIZE // 2}: no byte for 0.5 s" in said[0]
    if kinds == ["wrong"]:
        assert "fetching it again" in said[0]


def test_the_same_faults_with_a_server_without_ranges_or_versions(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path, target: int, said: list[str]
) -> None:
    (shard,) = plain_set(SIZE)
    served = serve(tmp_path / "set", ranges=False, etags=False, planted={PATH: ["short", "reset"]})
    assert hashlib.sha256(fetch(served, shard, target, said)).hexdigest() == shard.sha256


def test_absent_is_told_at_once(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path, target: int, said: list[str]
) -> None:
    (shard,) = plain_set(SIZE)
    served = serve(tmp_path / "set", planted={PATH: ["404!"]})
    with pytest.raises(Absent, match=r"00000\.tar is absent: the server says 404"):
        fetch(served, shard, target, said)
    assert served.counts()[PATH] == 1


@pytest.mark.parametrize(("change", "seen"), [(0, "sha256"), (-7, "2999993 bytes"), (7, "3000007 bytes")])
def test_other_bytes_or_sizes_are_corrupt_after_fresh_fetches(
    change: int,
    seen: str,
    serve: Callable[..., Any],
    plain_set: Callable[..., list[Shard]],
    tmp_path: Path,
    target: int,
    said: list[str],
) -> None:
    (shard,) = plain_set(SIZE)
    tar = tmp_path / "set/00000.tar"
    tar.write_bytes(
        (b"other" + tar.read_bytes() + b"+" * 7)[: SIZE + change] if change <= 0 else tar.read_bytes() + b"+" * 7
    )
    served = serve(tmp_path / "set")
    with pytest.raises(Corrupt, match=f"has {seen}.*the manifest says"):
        fetch(served, shard, target, said)
    assert served.counts()[PATH] == 3


@pytest.mark.parametrize(
    ("kind", "words"), [("503now!", "says 503"), ("short!", "connection ended"), ("stall!", "timed out")]
)
def test_patience_ends_with_the_offset_and_the_last_error(
    kind: str,
    words: str,
    serve: Callable[..., Any],
    plain_set: Callable[..., list[Shard]],
    tmp_path: Path,
    target: int,
    said: list[str],
) -> None:
    (shard,) = plain_set(SIZE)
    # a server that always gives half of what is missing makes progress until the rest is one byte
    served = serve(
        tmp_path / "set", planted={PATH: ["short", kind]} if kind == "503now!" else {PATH: [kind]}, ranges=False
    )
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"00000\.tar at offset \d+: nothing came for . s, lastly: .*{words}"):
        fetch(served, shard, target, said, seconds=1.0, stall_seconds=0.3)
    assert 1.0 < time.monotonic() - began < 3.0


def test_a_server_that_is_not_there_is_waited_for(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path, target: int, said: list[str]
) -> None:
    (shard,) = plain_set(SIZE)
    first = serve(tmp_path / "set")
    port = int(first.location.rpartition(":")[2])
    first.stop()
    with pytest.raises(RunError, match="Connection refused"):
        fetch(first, shard, target, said, seconds=0.3)
    threading.Timer(0.7, lambda: serve(tmp_path / "set", port=port)).start()
    assert hashlib.sha256(fetch(first, shard, target, said)).hexdigest() == shard.sha256


def test_a_refusal_does_not_wait_for_patience(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path, target: int, said: list[str]
) -> None:
    (shard,) = plain_set(SIZE)
    served = serve(tmp_path / "set", planted={PATH: ["403!"]})
    with pytest.raises(RunError, match=r"says 403.*credentials"):
        fetch(served, shard, target, said, seconds=600)
    assert served.counts()[PATH] == 6


def test_a_small_file_travels_only_when_it_changed(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path
) -> None:
    plain_set(10)
    index = tmp_path / "set/00000.parquet"
    served = serve(tmp_path / "set", planted={"/00000.parquet": ["short", "503now"]})
    with closing(Transfer(origin(served.location), Patience())) as transfer:
        first = transfer.read("00000.parquet")
        assert first is not None and first.content == index.read_bytes() and first.etag
        assert transfer.read("00000.parquet", first.etag) is None
        index.write_bytes(b"mended")
        again = transfer.read("00000.parquet", first.etag)
        assert again is not None and again.content == b"mended" and again.etag != first.etag
        with pytest.raises(Absent):
            transfer.read("absent.json")


def test_pauses_grow_differ_and_are_computed() -> None:
    assert [pause("a", attempt) for attempt in range(5)] == [pause("a", attempt) for attempt in range(5)]
    assert pause("a", 3) != pause("b", 3)
    for attempt in range(40):
        assert min(30, 0.1 * 2**attempt) * 0.5 <= pause("a", attempt) <= min(30, 0.1 * 2**attempt) * 1.5


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7", 0) == 7
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20) == 40
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 100) == retry_after("soon", 0) == retry_after("", 0) == 0
