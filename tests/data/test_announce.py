"""What is asked for of the disk: the samples that come next, each once, so far ahead and no further."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.data.announce import PAGE, PROBES, Announcer
from bigdiff.data.course import Course, Picks
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.spans import Spans
from bigdiff.data.stream import Ahead, Slice, batches

SIZES, TOTAL = (40, 24, 33, 47), 8
BUCKETS = ("256x256",) * len(SIZES)  # 17 kB a sample
EVERYTHING = [(0, shard) for shard in range(len(SIZES))]
Place = tuple[int, int]


class Told(LatentReader):
    """Remembers what was asked for, as (shard, row), and how much of it at once."""

    def __init__(self, one: LatentSet) -> None:
        super().__init__([one])
        self.asked: list[Place] = []

    def spans(self, picks: Picks) -> AbstractContextManager[Spans]:
        self.asked += zip(picks.shards.tolist(), picks.rows.tolist(), strict=True)
        return super().spans(picks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, latent_set: Callable[..., Path]) -> Path:
    return latent_set(tmp_path_factory.mktemp("sets") / "a", SIZES, BUCKETS)


@pytest.fixture
def reader(folder: Path) -> Iterator[Told]:
    with LatentSet(str(folder)) as one:
        yield Told(one)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache has nothing, whatever it has."""
    monkeypatch.setattr(Announcer, "_there", lambda self, step, last, known: False)


def course(one: LatentSet, repeat: float | None = None) -> Course:
    source = Source(name="a", sizes=one.manifest.sizes, buckets=one.manifest.buckets, repeat=repeat)
    return Course(sources=(source,), seed=3, window=2, lanes=1, total=TOTAL)


def places(path: Course, begin: int, end: int, part: Place = (0, TOTAL)) -> list[Place]:
    """(shard, row) of these steps."""
    picks = [path.locate(step, *part) for step in range(begin, end)]
    return [pair for one in picks for pair in zip(one.shards.tolist(), one.rows.tolist(), strict=True)]


def quiet(told: Told, least: int = 0) -> list[Place]:
    """What has been asked for once nothing more is, and so many at least are."""
    until = time.monotonic() + 10
    while len(told.asked) < least and time.monotonic() < until:
        time.sleep(0.01)
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < 0.2:
        if len(told.asked) != seen:
            seen, since = len(told.asked), time.monotonic()
        time.sleep(0.01)
    return list(told.asked)


def ended(told: Announcer) -> bool:
    """Whether the thread is over, soon."""
    assert told._thread is not None
    told._thread.join(10)
    return not told._thread.is_alive()


@pytest.mark.parametrize("part", [(0, 8), (4, 8)])
def test_the_next_samples_are_asked_for_once_and_not_beyond_the_bound(reader: Told, cold: None, part: Place) -> None:
    path = course(reader.sets[0])
    sample = reader.layouts[BUCKETS[0]].total
    size = 6 * sample * (part[1] - part[0])  # six steps
    with closing(Announcer(reader, path, part, 2, size)) as told:
        told.want(EVERYTHING)
        for reached in range(2, 14):
            told.reached(reached)
            asked = quiet(reader, (reached + 1) * (part[1] - part[0]))
            behind = 2 + len(asked) // (part[1] - part[0])
            assert asked == places(path, 2, behind, part)
            assert reached + 3 <= behind <= reached + 6
    assert quiet(reader) == asked


def test_what_was_consumed_is_left_out(reader: Told, cold: None) -> None:
    path = course(reader.sets[0])
    with closing(Announcer(reader, path, (0, TOTAL), 0, 1 << 20)) as told:
        told.reached(5)
        told.want(EVERYTHING)
        asked = quiet(reader, TOTAL)
    assert asked == places(path, 5, 5 + len(asked) // TOTAL) and asked


def test_steps_whose_shards_are_not_wanted_wait(reader: Told, cold: None) -> None:
    path = course(reader.sets[0])
    first = path.ahead(0, 0, TOTAL, 0)
    turn = path.turnover(0, 0, TOTAL)
    with closing(Announcer(reader, path, (0, TOTAL), 0, 1 << 30)) as told:
        assert quiet(reader) == []
        told.want(first)
        asked = quiet(reader, (turn or 0) * TOTAL)
        assert asked == places(path, 0, turn or 0) and {shard for shard, _ in asked} == {shard for _, shard in first}
        told.want(EVERYTHING)
        assert quiet(reader, len(asked) + TOTAL)[: len(asked) + TOTAL] == places(path, 0, len(asked) // TOTAL + 1)


def test_a_course_ends(reader: Told, cold: None) -> None:
    path = course(reader.sets[0], repeat=1)
    with closing(Announcer(reader, path, (0, TOTAL), 0, 1 << 30)) as told:
        told.want(EVERYTHING)
        assert quiet(reader, (path.steps or 0) * TOTAL) == places(path, 0, path.steps or 0)
        assert ended(told)


def test_what_is_there_is_only_probed(reader: Told, folder: Path) -> None:
    for tar in folder.glob("*.tar"):
        tar.read_bytes()
    path = course(reader.sets[0], repeat=1)
    with closing(Announcer(reader, path, (0, TOTAL), 0, 1 << 30)) as told:
        told.want(EVERYTHING)
        asked = quiet(reader)
    assert len(asked) <= sum(SIZES) // 2 and set(asked) <= set(places(path, 0, path.steps or 0))


def test_a_step_above_the_bound_ends_it(reader: Told, cold: None) -> None:
    path = course(reader.sets[0])
    with closing(Announcer(reader, path, (0, TOTAL), 0, PAGE * TOTAL)) as told:
        told.want(EVERYTHING)
        assert quiet(reader, TOTAL) == places(path, 0, 1)
        assert ended(told)


@pytest.mark.parametrize("wanted", [[], EVERYTHING])
def test_no_thread_is_left(reader: Told, wanted: list[Place]) -> None:
    before = set(threading.enumerate())
    with ExitStack() as stack:
        with (
            pytest.raises(KeyboardInterrupt),
            closing(Announcer(reader, course(reader.sets[0]), (0, TOTAL), 0, 1 << 18)) as told,
        ):
            told.want(wanted)
            quiet(reader)
            raise KeyboardInterrupt
        stack.callback(told.close)  # again: nothing
    assert set(threading.enumerate()) == before
    with closing(Announcer(reader, course(reader.sets[0]), (0, TOTAL), 0, 0)):
        assert set(threading.enumerate()) == before


@pytest.mark.parametrize("kind", ["missing", "truncated", "index", "offsets"])
def test_damage_is_told_to_readers_alone(tmp_path: Path, latent_set: Callable[..., Path], kind: str) -> None:
    folder = latent_set(tmp_path / "a", SIZES, BUCKETS)
    tar = folder / "00001.tar"
    if kind == "missing":
        tar.unlink()
    elif kind == "truncated":
        os.truncate(tar, 100_000)
    elif kind == "index":
        tar.with_suffix(".parquet").write_bytes(b"junk")
    else:
        spoil(tar.with_suffix(".parquet"))
    told = []
    for size in (0, 1 << 20):
        lines: list[str] = []
        with LatentSet(str(folder)) as one, closing(read(one, lines, size)) as stream:
            told.append(([next(stream) for _ in range(18)], lines))
    assert told[0][0] == told[1][0]
    assert all(len(lines) == 1 and "00001.tar" in lines[0] for _, lines in told), told


def spoil(index: Path) -> None:
    """Places that no tar has."""
    table = pq.read_table(index)
    for name in ("safetensors_offset", "safetensors_length"):
        wild = pa.array([2**40 + row for row in range(table.num_rows)], pa.int64())
        table = table.set_column(table.column_names.index(name), name, wild)
    pq.write_table(table, index)


def read(one: LatentSet, lines: list[str], size: int) -> Iterator[object]:
    part, quarantine = Slice(total=TOTAL, micro=TOTAL, rank=0, size=1), Quarantine(warn=lines.append)
    stream = batches(LatentReader([one]), course(one), part, 0, Ahead(disk_bytes=size), quarantine)
    with closing(stream):
        for (batch,) in stream:
            yield batch.consumed, batch.moments.sum().item()


def test_a_large_step_is_probed_at_several_samples(reader: Told) -> None:
    """One alone may be kept in memory (data.memory_gb), or taken down, and says nothing of the others."""
    path = course(reader.sets[0])
    with closing(Announcer(reader, path, (0, TOTAL), 0, 0)) as one:
        one._there(3, 4, frozenset(EVERYTHING))
        assert reader.asked == places(path, 3, 4)
        reader.asked.clear()
        one._there(0, 12, frozenset(EVERYTHING))
    probed = [places(path, 0, 12).index(pair) for pair in reader.asked]
    assert len(probed) == PROBES and probed == sorted(probed) and max(np.diff(probed)) <= TOTAL


def test_the_page_cache_gets_what_comes_next(
    folder: Path, evict: Callable[[Path], None], resident: Callable[[Path], np.ndarray]
) -> None:
    tars = sorted(folder.glob("*.tar"))
    for tar in tars:
        evict(tar)
    with LatentSet(str(folder)) as one:
        path, part = course(one), Slice(total=TOTAL, micro=TOTAL, rank=0, size=1)
        sample = one.layouts[BUCKETS[0]].total
        stream = batches(LatentReader([one]), path, part, 0, Ahead(disk_bytes=8 * TOTAL * sample), Quarantine())
        with closing(stream), one.shards.lease(range(len(SIZES))) as held:
            next(stream)
            until = time.monotonic() + 10
            while not all(there(resident(tars[shard]), held[shard].offsets[row], sample) for shard, row in soon(path)):
                assert time.monotonic() < until
                time.sleep(0.01)


def soon(path: Course) -> list[Place]:
    """Of the steps behind the four that are read at once."""
    return places(path, 4, 7)


def there(pages: np.ndarray, offset: int, length: int) -> bool:
    return bool(pages[offset // PAGE : (offset + length - 1) // PAGE + 1].all())
