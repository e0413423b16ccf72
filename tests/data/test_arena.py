"""What is kept in memory changes where samples come from, and nothing else."""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.config.errors import UsageError
from bigdiff.data.arena import Arena
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Quarantine, Tombstones
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

SIZES, OTHERS, BUCKET = (9, 5, 7, 11), (6, 6), "256x256"
SAMPLES = sum(SIZES)
TOTAL = 4  # samples of a step
LINES = 16_576  # bytes that a sample of 16,534 takes: whole cache lines
PLENTY = 100 * LINES
NAMED = {"0003": 2, "1004": 2, "2001": 1, "http://b/1/1.jpg": 1}  # how many samples of both sets these take down
Make = Callable[..., Path]
Step = tuple[bytes, Consumed]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, latent_set: Make) -> tuple[Path, Path]:
    """Two sets with a damaged sample each, which no epoch may keep."""
    base = tmp_path_factory.mktemp("sets")
    made = latent_set(base / "a", SIZES, [BUCKET] * 4), latent_set(base / "b", OTHERS, [BUCKET] * 2)
    for folder in made:
        overwrite(folder / "00001.tar", 4096, b"spoiled")
    return made


@pytest.fixture
def folder(tmp_path: Path, latent_set: Make) -> Path:
    return latent_set(tmp_path / "a", SIZES, [BUCKET] * 4)


def overwrite(tar: Path, place: int, content: bytes) -> None:
    """In place, so that whoever has it open reads it."""
    with tar.open("r+b") as stream:
        stream.seek(place)
        stream.write(content)


def steps(sets: list[LatentSet], window: int, threads: int = 1, start: int = 0) -> Iterator[Step]:
    """Bytes and whereabouts of each step from `start` on."""
    sources = tuple(Source(name=one.location, sizes=one.manifest.sizes, buckets=one.manifest.buckets) for one in sets)
    course = Course(sources=sources, seed=3, window=window, lanes=1, total=TOTAL)
    reader, part = LatentReader(sets), Slice(total=TOTAL, micro=TOTAL, rank=0, size=1)
    ahead = Ahead(threads=threads)
    stream = batches(reader, course, part, start * TOTAL, ahead, Quarantine(warn=lambda line: None))
    try:
        for (batch,) in stream:
            yield batch.raw[:, : batch.layout.total].numpy().tobytes(), batch.consumed
    finally:
        stream.close()


def some(sets: list[LatentSet], window: int, first: int, last: int, threads: int = 1) -> list[Step]:
    stream = steps(sets, window, threads, first)
    found = [next(stream) for _ in range(first, last)]
    stream.close()
    return found


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([1, LINES - 1, LINES, 5 * LINES, 20 * LINES + 7, PLENTY]),
    threads=st.sampled_from([1, 3]),
    window=st.sampled_from([1, 2, 64]),
    dead=st.frozensets(st.sampled_from(sorted(NAMED))),
)
def test_batches_are_the_same_with_and_without(
    folders: tuple[Path, Path], size: int, threads: int, window: int, dead: frozenset[str]
) -> None:
    last, without = 3 * (SAMPLES + sum(OTHERS)) // TOTAL, Tombstones(entries=dead)
    with ExitStack() as stack:
        arena = stack.enter_context(closing(Arena(size)))
        plain = [stack.enter_context(LatentSet(str(one), without)) for one in folders]
        kept = [stack.enter_context(LatentSet(str(one), without, arena=arena)) for one in folders]
        assert some(kept, window, 0, last, threads) == some(plain, window, 0, last)
        lost = 2 + sum(NAMED[one] for one in dead)
        assert arena.used <= size and arena.full == (size < PLENTY)
        assert arena.full or arena.used == (SAMPLES + sum(OTHERS) - lost) * LINES


def rchar() -> int:
    """Bytes that this process has asked files for."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_what_is_kept_is_read_from_no_file(folder: Path) -> None:
    with closing(Arena(PLENTY)) as arena, LatentSet(str(folder), arena=arena) as one, LatentSet(str(folder)) as other:
        expected = some([other], 64, 0, 3 * SAMPLES // TOTAL)
        stream, found = steps([one], 64), []
        while len(found) < len(expected):
            if len(found) == SAMPLES // TOTAL + 4:  # an epoch, and what is read ahead of it
                before = rchar()
                for tar in folder.glob("*.tar"):
                    overwrite(tar, 0, bytes(tar.stat().st_size))
            found.append(next(stream))
        read = rchar() - before
        stream.close()
    assert found == expected
    assert read < LINES, "less than one sample"


def test_what_is_kept_outlives_the_closing_of_its_shard(folder: Path) -> None:
    """A window of one shard: each is closed and opened again."""
    epoch = SAMPLES // TOTAL
    with closing(Arena(PLENTY)) as arena, LatentSet(str(folder), arena=arena) as one:
        with LatentSet(str(folder)) as other:
            expected = some([other], 1, epoch, 2 * epoch)
        some([one], 1, 0, epoch)
        for tar in folder.glob("*.tar"):
            overwrite(tar, 0, bytes(tar.stat().st_size))
        assert some([one], 1, epoch, 2 * epoch) == expected
        assert arena.used == SAMPLES * LINES


@pytest.mark.parametrize("kind", ["missing", "truncated", "index", "replaced"])
def test_a_shard_that_is_broken_or_replaced_is_so_when_it_is_opened_again(
    folder: Path, tmp_path: Path, latent_set: Make, kind: str
) -> None:
    """All processes must come to the same samples, whether they have kept some of it or not."""
    epoch, tar = SAMPLES // TOTAL, folder / "00003.tar"
    with closing(Arena(PLENTY)) as arena, LatentSet(str(folder), arena=arena) as one:
        some([one], 64, 0, epoch)
        one.shards.keep_only([])
        if kind == "missing":
            tar.unlink()
        elif kind == "truncated":
            tar.write_bytes(tar.read_bytes()[:-512])
        elif kind == "index":
            tar.with_suffix(".parquet").write_bytes(b"junk")
        else:
            other = latent_set(tmp_path / "other", SIZES, [BUCKET] * 4)
            for suffix in (".tar", ".parquet"):
                (other / "00003").with_suffix(suffix).rename(tar.with_suffix(suffix))
        with LatentSet(str(folder)) as plain:
            expected = some([plain], 64, epoch, 2 * epoch)
        assert some([one], 64, epoch, 2 * epoch) == expected
        assert any(consumed.substituted for _, consumed in expected) == (kind != "replaced")
        assert arena.used == (SAMPLES + (SIZES[3] if kind == "replaced" else 0)) * LINES


def test_the_disk_is_not_asked_for_what_is_kept(folder: Path) -> None:
    asked = 0
    with closing(Arena(3 * LINES)) as arena, LatentSet(str(folder), arena=arena) as one:
        some([one], 64, 0, SAMPLES // TOTAL)
        for shard, size in enumerate(SIZES):
            with one.shards.lease([shard]) as held:
                rows, kept = np.arange(size), held[shard].kept
                found = held[shard].spans(rows, one.manifest.shards[shard].bytes)
                left = rows if kept is None else rows[~kept.has(rows)]
                assert found.offsets.tolist() == np.asarray(held[shard].offsets)[left].tolist()
                asked += len(found)
    assert asked == SAMPLES - 3


def resident_bytes(address: int, size: int) -> int:
    """How much of this memory is there, by mincore; -1: it is not mapped."""
    found = np.zeros(size // mmap.PAGESIZE, np.uint8)
    if ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)):
        return -1
    return int((found & 1).sum()) * mmap.PAGESIZE


def test_memory_grows_as_it_is_filled_and_is_given_back() -> None:
    huge = 1 << 21  # a page of the kernel's larger kind may be taken whole
    with closing(Arena(64 * huge)) as arena:
        kept = arena.kept("a", memoryview(np.arange(3, dtype=np.uint64)))
        assert kept is not None and arena.kept("a", memoryview(np.arange(3, dtype=np.uint64))) is kept
        assert arena.kept("a", memoryview(np.arange(1, 4, dtype=np.uint64))) is not kept
        assert arena.kept("b", memoryview(np.arange(3, dtype=np.uint64))) is not kept, "a copy may be damaged"
        base = kept.room.base
        assert resident_bytes(base, 64 * huge) == 0
        kept.memory[: 3 * huge] = 1
        assert 3 * huge <= resident_bytes(base, 64 * huge) <= 4 * huge
    assert resident_bytes(base, 64 * huge) >= 3 * huge, "who still has a shard may read from it"
    del kept
    assert resident_bytes(base, 64 * huge) == -1


def test_a_full_or_closed_memory_remembers_no_new_shards(folder: Path) -> None:
    with closing(Arena(2 * LINES)) as arena, LatentSet(str(folder), arena=arena) as one:
        some([one], 1, 0, 2)
        assert arena.full and arena.used == 2 * LINES
        assert arena.kept("new", memoryview(np.ones(5, np.uint64))) is None
    assert arena.kept("new", memoryview(np.ones(5, np.uint64))) is None


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
def test_what_the_system_refuses_is_named(size: int) -> None:
    with pytest.raises(UsageError, match=r"data\.memory_gb=.*: the system refuses a process so much memory .*: lower"):
        Arena(size)
