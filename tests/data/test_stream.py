"""The generator over real sets: what it gives is the course, whatever the processes, threads, and damage."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigdiff.config.errors import LastingError, UsageError
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine, Tombstones
from bigdiff.data.latents import Batch, LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

SIZES = (9, 5, 7, 11)
BUCKETS = ("16x24", "24x16", "16x24", "24x16")
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, latent_set: Make) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("sets")
    return latent_set(base / "a", SIZES, BUCKETS), latent_set(base / "b", (6, 6), ("24x16", "16x24"))


def course(sets: list[LatentSet], total: int, lanes: int = 1, window: int = 2) -> Course:
    sources = tuple(Source(name=one.location, sizes=one.manifest.sizes, buckets=one.manifest.buckets) for one in sets)
    return Course(sources=sources, seed=3, window=window, lanes=lanes, total=total)


def opened(folders: tuple[Path, ...], tombstones: frozenset[str] = frozenset()) -> list[LatentSet]:
    return [LatentSet(str(folder), Tombstones(entries=tombstones)) for folder in folders]


def steps(
    sets: list[LatentSet], path: Course, part: Slice, start: int, count: int, ahead: Ahead
) -> list[list[tuple[Batch, np.ndarray, np.ndarray]]]:
    """Copies of what `count` steps gave."""
    stream = batches(LatentReader(sets), path, part, start, ahead, Quarantine(warn=lambda line: None))
    try:
        return [
            [(batch, batch.moments.numpy().copy(), batch.tokens.numpy()) for batch in next(stream)]
            for _ in range(count)
        ]
    finally:
        stream.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_processes_threads_and_accumulation_give_the_course(
    folders: tuple[Path, Path], latent_sample: Callable[..., tuple[np.ndarray, np.ndarray]], data: st.DataObject
) -> None:
    total = 12
    size = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    micro = data.draw(st.sampled_from([m for m in (1, 2, 3, 4, 6, 12) if total % (size * m) == 0]))
    lanes = data.draw(st.sampled_from([1, 2, 3, 4]))
    first = data.draw(st.integers(0, 9))
    ahead = Ahead(steps=data.draw(st.integers(1, 3)), threads=data.draw(st.integers(1, 3)))
    sets = opened(folders)
    path = course(sets, total, lanes)
    ranks = [
        steps(sets, path, Slice(total=total, micro=micro, rank=rank, size=size), first * total, 3, ahead)
        for rank in range(size)
    ]
    for step in range(3):
        whole = path.locate(first + step, 0, total)
        made = [one for rank in ranks for one in rank[step]]
        assert [p for batch, _, _ in made for p in batch.positions.tolist()] == list(
            range((first + step) * total, (first + step + 1) * total)
        )
        assert {batch.bucket for batch, _, _ in made} == {whole.bucket}
        samples = zip(whole.sources.tolist(), whole.shards.tolist(), whole.rows.tolist(), strict=True)
        for (moments, tokens), (source, shard, row) in zip(_each(made), samples, strict=True):
            expected = latent_sample("ab"[source], whole.bucket, shard, row)
            assert np.array_equal(moments, expected[0]) and np.array_equal(tokens, expected[1])
    for one in sets:
        one.__exit__(None, None, None)


def _each(made: list[tuple[Batch, np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pair for _, moments, tokens in made for pair in zip(moments, tokens, strict=True)]


def test_what_was_consumed_is_the_digest_of_the_course(folders: tuple[Path, Path]) -> None:
    sets = opened(folders)
    path = course(sets, 12)
    for step, made in enumerate(steps(sets, path, Slice(total=12, micro=4, rank=0, size=1), 0, 5, Ahead())):
        for number, (batch, _, _) in enumerate(made):
            picks = path.locate(step, 4 * number, 4 * number + 4)
            assert batch.consumed.position == 12 * step + 4 * number and batch.consumed.samples == 4
            whole = np.stack((picks.sources, picks.shards, picks.rows)).astype("<i8").tobytes()  # as ledgers hold it
            assert batch.consumed.digest == xxhash.xxh3_64_intdigest(whole)
            assert batch.consumed.substituted == ()


def test_an_epoch_holds_every_sample_once(tmp_path: Path, latent_set: Make) -> None:
    folder = latent_set(tmp_path / "a", (8, 4, 12), ())
    with LatentSet(str(folder)) as one:
        made = steps([one], course([one], 8), Slice(total=8, micro=8, rank=0, size=1), 0, 3, Ahead())
        seen = Counter(sample.tobytes() for step in made for _, moments, _ in step for sample in moments)
    assert len(seen) == 24 and set(seen.values()) == {1}


def test_a_course_that_ends_is_read_to_its_end(tmp_path: Path, latent_set: Make) -> None:
    folder = latent_set(tmp_path / "a", (8, 4, 12), ())
    with LatentSet(str(folder)) as one:
        source = Source(name="a", sizes=one.manifest.sizes, repeat=2)
        path = Course(sources=(source,), seed=3, window=2, lanes=1, total=8)
        part = Slice(total=8, micro=4, rank=1, size=2)
        made = list(batches(LatentReader([one]), path, part, 8, Ahead(steps=3), Quarantine()))
    assert [step[0].consumed.position for step in made] == [8 * step + 4 for step in range(1, 6)]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing", "replaced", "renamed", "index", "tombstone"])
def test_the_bad_are_substituted_and_nothing_else_moves(
    tmp_path: Path, latent_set: Make, latent_sample: Callable[..., tuple[np.ndarray, np.ndarray]], kind: str
) -> None:
    folder = latent_set(tmp_path / "a", SIZES, BUCKETS)
    with LatentSet(str(folder)) as one:
        path, part = course([one], 8), Slice(total=8, micro=4, rank=0, size=1)
        whole = steps([one], path, part, 0, 8, Ahead())
    harmed = harm(folder, kind)
    dead = frozenset({"0003", "http://a/2/1.jpg"}) if kind == "tombstone" else frozenset()
    with LatentSet(str(folder), Tombstones(entries=dead)) as one:
        again = steps([one], path, part, 0, 8, Ahead())
        resumed = steps([one], path, part, 3 * 8, 5, Ahead(steps=1, threads=1))
    lost = set()
    for before, after in zip(itertools.chain(*whole), itertools.chain(*again), strict=True):
        bad = {one.position - after[0].consumed.position: one for one in after[0].consumed.substituted}
        lost |= {(one.shard, one.row) for one in after[0].consumed.substituted}
        for index in range(4):
            assert np.array_equal(before[1][index], after[1][index]) == (index not in bad)
        assert all(one.reason == "tombstone" for one in bad.values()) == (kind == "tombstone" or not bad)
    read = {(s, r) for step in range(8) for s, r in _places(path, step)}
    assert harmed & read <= lost <= harmed and lost  # substitutes may be bad, too
    everything = {(shard, row) for shard, size in enumerate(SIZES) for row in range(size)}
    good = {_sample_bytes(latent_sample, shard, row) for shard, row in everything - harmed}
    assert {row.tobytes() for step in again for _, moments, _ in step for row in moments} <= good
    assert [batch[0].consumed for step in again[3:] for batch in step] == [
        batch[0].consumed for step in resumed for batch in step
    ]


def _places(path: Course, step: int) -> list[tuple[int, int]]:
    picks = path.locate(step, 0, path.total)
    return list(zip(picks.shards.tolist(), picks.rows.tolist(), strict=True))


def _sample_bytes(latent_sample: Callable[..., tuple[np.ndarray, np.ndarray]], shard: int, row: int) -> bytes:
    content: bytes = latent_sample("a", BUCKETS[shard], shard, row)[0].tobytes()
    return content


def harm(folder: Path, kind: str) -> set[tuple[int, int]]:
    """Damage the set; which (shard, row) are bad now."""
    tar = folder / "00003.tar"
    content = bytearray(tar.read_bytes())
    whole = {(3, row) for row in range(SIZES[3])}
    if kind == "tombstone":
        return {(0, 3), (2, 1)}
    if kind == "flipped":
        place = 3 * 1024 + 600  # in the payload of the fourth member
        content[place] ^= 4
        tar.write_bytes(content)
        return {(3, 3)}
    if kind == "truncated":
        tar.write_bytes(content[:-512])
    if kind == "missing":
        tar.unlink()
    if kind == "replaced":
        tar.write_bytes(bytes(len(content)))
    if kind == "renamed":
        (folder / "00000.tar").rename(tar)  # of another size, and 00000 is gone
        return whole | {(0, row) for row in range(SIZES[0])}
    if kind == "index":
        (folder / "00003.parquet").write_bytes(b"junk")
    return whole


def test_a_warning_names_the_shard_once(tmp_path: Path, latent_set: Make) -> None:
    folder = latent_set(tmp_path / "a", SIZES, BUCKETS)
    harm(folder, "missing")
    lines: list[str] = []
    quarantine = Quarantine(warn=lines.append)
    with LatentSet(str(folder)) as one:
        stream = batches(
            LatentReader([one]), course([one], 8), Slice(total=8, micro=8, rank=0, size=1), 0, Ahead(), quarantine
        )
        for _ in range(12):
            next(stream)
        stream.close()
    assert len(lines) == 1 and "00003.tar" in lines[0] and "sample" in lines[0]
    assert quarantine.damaged >= sum(quarantine.shards.values()) > 1


def test_a_set_without_a_good_sample_ends_the_run(tmp_path: Path, latent_set: Make) -> None:
    folder = latent_set(tmp_path / "a", (4, 4), ())
    for tar in folder.glob("*.tar"):
        tar.unlink()
    with LatentSet(str(folder)) as one:
        stream = batches(
            LatentReader([one]),
            course([one], 4),
            Slice(total=4, micro=4, rank=0, size=1),
            0,
            Ahead(),
            Quarantine(warn=lambda line: None),
        )
        with pytest.raises(LastingError, match="damaged or taken down as a whole"):
            next(stream)


def test_what_was_read_is_given_before_the_error_behind_it(tmp_path: Path, latent_set: Make) -> None:
    folder = latent_set(tmp_path / "a", (48, 8), ("16x24", "24x16"))
    (folder / "00001.tar").unlink()
    with LatentSet(str(folder)) as one:
        path = course([one], 4)
        worst = next(step for step in range(3, 99) if path.bucket_of(step) == "24x16")
        good = [path.bucket_of(step) for step in range(worst - 3, worst)]
        part, ahead = Slice(total=4, micro=4, rank=0, size=1), Ahead(steps=2, threads=2)
        stream = batches(LatentReader([one]), path, part, 4 * (worst - 3), ahead, Quarantine(warn=lambda line: None))
        for bucket in good:
            assert next(stream)[0].bucket == bucket == "16x24"
            time.sleep(0.1)  # until the steps behind it are read, and the last of them has failed
        with pytest.raises(LastingError, match="damaged or taken down as a whole"):
            next(stream)


@pytest.mark.parametrize(("start", "micro", "size"), [(5, 4, 1), (0, 4, 3), (0, 5, 1)])
def test_what_does_not_divide_is_refused(folders: tuple[Path, Path], start: int, micro: int, size: int) -> None:
    sets = opened(folders)
    part = Slice(total=8, micro=micro, rank=0, size=size)
    with pytest.raises(UsageError, match="do not divide"):
        next(batches(LatentReader(sets), course(sets, 8), part, start, Ahead(), Quarantine()))


@pytest.mark.parametrize("end", ["close", "error", "interrupt"])
def test_nothing_is_left_behind(folders: tuple[Path, Path], end: str) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    raised = {"close": None, "error": ValueError, "interrupt": KeyboardInterrupt}[end]
    try:
        with LatentSet(str(folders[0])) as one:
            stream = batches(
                LatentReader([one]), course([one], 8), Slice(total=8, micro=2, rank=0, size=1), 0, Ahead(), Quarantine()
            )
            try:
                next(stream)
                if raised:
                    raise raised
            finally:
                stream.close()
    except (ValueError, KeyboardInterrupt):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_buffers_are_used_again(folders: tuple[Path, Path]) -> None:
    sets = opened(folders)
    stream = batches(
        LatentReader(sets), course(sets, 8), Slice(total=8, micro=8, rank=0, size=1), 0, Ahead(steps=2), Quarantine()
    )
    memory = {next(stream)[0].raw.data_ptr() for _ in range(20)}
    stream.close()
    assert len(memory) == 4  # two steps together while the next two are read


def test_a_device_is_fed_the_same(folders: tuple[Path, Path]) -> None:
    sets = opened(folders)
    batch = steps(sets, course(sets, 8), Slice(total=8, micro=8, rank=0, size=1), 0, 1, Ahead())[0][0][0]
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.moments, batch.moments) and torch.equal(moved.tokens, batch.tokens)
