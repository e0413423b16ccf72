import ctypes
import errno
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from bigdiff.data import preads as module
from bigdiff.data.arena import Arena
from bigdiff.data.preads import SHORT, Place, preads

LENGTH = 700


@contextmanager
def place(
    file: Path, offsets: list[int], length: int = LENGTH, dead: bytes | None = None, arena: Arena | None = None
) -> Iterator[Place]:
    """An open file as a shard: with the checksum of what lies at each offset."""
    descriptor, content = os.open(file, os.O_RDONLY), file.read_bytes() if file.is_file() else b""
    digests = [xxh3_64_intdigest(content[offset : offset + length]) for offset in offsets]
    views = memoryview(np.array(offsets, np.int64)), memoryview(np.array(digests, np.uint64))
    yield Place(descriptor, *views, dead or bytes(len(offsets)), arena.kept(str(file), views[1]) if arena else None)
    os.close(descriptor)


def read(samples: list[tuple[Place, int]], length: int = LENGTH) -> tuple[list[int], list[int], np.ndarray]:
    target = np.full((len(samples), length), 255, np.uint8)
    places = [ctypes.addressof(one) for one, _ in samples]
    bad, got = preads(places, np.array([row for _, row in samples], np.int64), target)
    return bad.tolist(), got.tolist(), target


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    found = np.random.default_rng(0).bytes(5000)
    (tmp_path / "file").write_bytes(found)
    return found


@pytest.mark.parametrize("length", [LENGTH, SHORT])
def test_rows_are_what_the_files_hold(tmp_path: Path, content: bytes, length: int) -> None:
    other = np.random.default_rng(1).bytes(5000)
    (tmp_path / "other").write_bytes(other)
    with place(tmp_path / "file", [0, 17], length) as one, place(tmp_path / "other", [4300, 3], length) as two:
        bad, got, target = read([(two, 1), (one, 0), (one, 1), (two, 0), (one, 0)], length)
    assert (bad, got) == ([], [length] * 5)
    expected = [other[3:], content, content[17:], other[4300:], content]
    assert [row.tobytes() for row in target] == [begin[:length] for begin in expected]


@pytest.mark.parametrize("length", [LENGTH, SHORT])
def test_what_is_bad_is_named(tmp_path: Path, content: bytes, length: int) -> None:
    end = len(content) - 10
    with place(tmp_path / "file", [0, end, 6000, 20], length, dead=bytes([0, 0, 0, 1])) as one:
        changed = bytearray(content)
        changed[length - 1] ^= 1
        (tmp_path / "file").write_bytes(changed)
        nothing = Place(-1, *(memoryview(np.zeros(1, kind)) for kind in (np.int64, np.uint64)), bytes(1))
        samples = [(one, 3), (one, 1), (one, 0), (one, 2), (nothing, 0), (one, 4), (one, -1)]
        bad, got, target = read(samples, length)
    assert bad == list(range(7))
    assert got == [0, 10, length, 0, 0, -errno.EINVAL, -errno.EINVAL]
    assert target[0].tobytes() == b"\xff" * length  # what was taken down is not even read


def test_an_error_is_its_number(tmp_path: Path) -> None:
    none = [memoryview(np.zeros(1, kind)) for kind in (np.int64, np.uint64)]
    with place(tmp_path, [0]) as folder:
        assert read([(folder, 0), (Place(10**6, *none, bytes(1)), 0)])[:2] == ([0, 1], [-errno.EISDIR, -errno.EBADF])


def test_what_was_good_comes_out_of_memory_and_nothing_else_does(tmp_path: Path, content: bytes) -> None:
    lines, other = 704, np.random.default_rng(1).bytes(5000)
    rows = [0, 1, 2, 3, 0, 4]
    with closing(Arena(3 * lines)) as arena, place(tmp_path / "file", [0, 17, 50, 90, 4990], arena=arena) as one:
        for row, change in ((1, 1 << 40), (4, 0)):  # bad: one by its checksum, one that the file is too short for
            ctypes.c_uint64.from_address(one.checksums + 8 * row).value ^= change
        bad, got, target = read([(one, row) for row in rows])
        assert (bad, got) == ([1, 5], [LENGTH] * 5 + [10]) and arena.used == 3 * lines and not arena.full
        (tmp_path / "file").write_bytes(other)
        bad, got, again = read([(one, row) for row in rows])
        assert (bad, got) == ([1, 5], [LENGTH] * 5 + [10])
        assert (
            np.array_equal(again[[0, 2, 3, 4]], target[[0, 2, 3, 4]]) and again[1].tobytes() == other[17 : 17 + LENGTH]
        )
        ctypes.c_uint8.from_address(one.dead + 2).value = 1
        assert read([(one, 2), (one, 3)])[:2] == ([0], [0, LENGTH]), "what is taken down is not given either"


def test_without_room_samples_are_read_as_before(tmp_path: Path, content: bytes) -> None:
    with closing(Arena(2 * 704 + 703)) as arena, place(tmp_path / "file", [0, 17, 50], arena=arena) as one:
        for _ in range(2):
            bad, got, target = read([(one, 0), (one, 1), (one, 2)])
            assert (bad, got) == ([], [LENGTH] * 3) and arena.full
            assert [row.tobytes() for row in target] == [content[at:][:LENGTH] for at in (0, 17, 50)]
        (tmp_path / "file").write_bytes(bytes(5000))
        assert read([(one, 0), (one, 1), (one, 2)])[0] == [2]


def test_short_samples_are_not_kept(tmp_path: Path, content: bytes) -> None:
    with closing(Arena(5000)) as arena, place(tmp_path / "file", [0, 17], SHORT, arena=arena) as one:
        assert read([(one, 0), (one, 1)], SHORT)[:2] == ([], [SHORT] * 2) and arena.used == 0


def test_many_threads_keep_each_sample_once_and_whole(tmp_path: Path) -> None:
    length, count, threads, rounds = 6400, 200, 4, 40
    content = np.random.default_rng(0).bytes(length + count)
    (tmp_path / "file").write_bytes(content)
    expected = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), length)[:count]
    rows, start, wrong = np.arange(count), Barrier(threads, timeout=60), []
    with ExitStack() as stack:
        arenas = [stack.enter_context(closing(Arena(2 * count * length))) for _ in range(rounds)]
        places = [stack.enter_context(place(tmp_path / "file", list(rows), length, arena=one)) for one in arenas]

        def run() -> None:
            target = np.zeros((count, length), np.uint8)
            for one in places:
                where = [ctypes.addressof(one)] * count
                start.wait()
                wrong.extend(preads(where, rows, target)[0].tolist())
                wrong.extend(np.flatnonzero((target != expected).any(1)).tolist())

        running = [Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        (tmp_path / "file").write_bytes(bytes(length))
        assert not wrong and {one.used for one in arenas} == {count * length}
        assert all(read([(one, row) for row in range(count)], length)[0] == [] for one in places)


@pytest.fixture(scope="module", params=["as built", "without AVX-512", "without AVX2"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled code, also as processors without wide vectors run it."""
    if request.param == "as built":
        return module.library("bigdiff.data._preads")
    built = tmp_path_factory.mktemp("narrow") / "narrow.so"
    source = Path(module.__file__).with_name("_preads.c")
    compiler = sysconfig.get_config_var("CC").split()[0]
    widest = "-DWIDEST=256" if request.param == "without AVX-512" else "-DWIDEST=0"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", widest, str(source), "-o", str(built)], check=True
    )
    return ctypes.CDLL(str(built))


def test_the_checksum_is_xxh3(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.bigdiff_read_members.argtypes, library.bigdiff_read_members.restype = (
        module._preads.argtypes,
        ctypes.c_int64,
    )
    monkeypatch.setattr(module, "_preads", library.bigdiff_read_members)
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(70_000))
    # around what XXH3 tells apart: short inputs, stripes of 64 bytes, blocks of 1,024
    lengths = [1, SHORT, SHORT + 1, *range(255, 258), *range(1000, 1100), *range(2047, 2050), 4097, 65_842]
    for length in lengths:
        with place(tmp_path / "file", [0, 1, 777], length) as one:
            assert read([(one, 0), (one, 1), (one, 2)], length)[:2] == ([], [length] * 3)
            other = ctypes.c_uint64.from_address(one.checksums + 8)
            other.value ^= 1 << 63
            assert read([(one, 0), (one, 1), (one, 2)], length)[0] == [1]
