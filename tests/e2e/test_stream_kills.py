"""Real processes that are killed, resized and started twice at once consume what one undisturbed process does.

A parent imports once and forks every rank, so a start costs milliseconds; the ranks are processes of their own and die
by SIGKILL. They agree on a step through a shared file, as a collective would, and hang when a peer is gone.
"""

import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.data import history, index, ledger, manifest
from bigdiff.data.member import pack
from bigdiff.data.proof import open_sets, prove
from bigdiff.data.recount import run_digest
from bigdiff.data.stream import digest
from bigdiff.runtime.files import sha256

TOTAL, MICRO, KILLS, EVERY = 48, 2, 20, 3
SIZES = (1, 2, 3, 4, 8)

RANKS = """
import json, mmap, os, signal, struct, sys, time
from pathlib import Path

import numpy.random
import pandas  # which pyarrow imports at its first use, for 0.3 s

from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine, Tombstones
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.ledger import Ledger, Place, header
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches
from bigdiff.runtime.files import write_json

def rank(job):
    dead = Tombstones(entries=frozenset(job["tombstones"]))
    sets = [LatentSet(one, dead) for one in job["sets"]]
    sources = tuple(
        Source(name=one.location, sizes=one.manifest.sizes, buckets=one.manifest.buckets, **share)
        for one, share in zip(sets, job["shares"])
    )
    course = Course(sources=sources, seed=5, window=2, lanes=2, total=job["total"])
    run, mine, size = Path(job["run"]), job["rank"], job["size"]
    place = Place(start=job["start"], parent=job["parent"], step=job["step"], rank=mine, size=size)
    log = Ledger(run, header(course, [one.fingerprint for one in sets], "latents", place))
    with open(job["meeting"], "r+b") as file:
        meeting = memoryview(mmap.mmap(file.fileno(), 8 * size)).cast("q")
    parent = os.getppid()

    def meet():
        meeting[mine] += 1
        while min(meeting) < meeting[mine]:
            time.sleep(0.0002)
            if os.getppid() != parent:
                os._exit(3)

    part = Slice(total=job["total"], micro=job["micro"], rank=mine, size=size)
    quiet = Quarantine(warn=lambda line: None)
    stream = batches(LatentReader(sets), course, part, job["step"] * job["total"], Ahead(steps=2, threads=2), quiet)
    for step in range(job["step"], job["steps"]):
        consumed = [batch.consumed for batch in next(stream)]
        meet()  # everybody's gradients
        # the undisturbed process writes backwards, so that each of its micro-batches is a run of its own
        log.write(step, consumed[::-1] if job["backwards"] else consumed)
        if (step + 1) % job["every"] == 0 or step + 1 == job["steps"]:
            log.sync()
            meet()
            if mine == 0:
                write_json(run / "checkpoint.json", {"step": step + 1, "start": job["start"]})
            meet()
    log.close()
    stream.close()

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the ended are reaped at once
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            rank(json.loads(line))
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Data:
    sets: list[str]
    shares: list[dict[str, Any]]
    tombstones: list[str]


class Parent:
    """The process that forks ranks."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process, self.errors = process, errors
        assert self._line() == "ready"

    def fork(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.errors.read_text()
        return line


@contextmanager
def forking(folder: Path) -> Iterator[Parent]:
    errors = folder / "errors.txt"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", RANKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
        )
    try:
        yield Parent(process, errors)
        assert errors.read_text() == ""
    finally:
        process.kill()  # ranks that wait for a peer see it and end
        process.communicate()


class Rank:
    """A process that may be killed at any time: a handle cannot come to mean another process, as a number can."""

    def __init__(self, number: int) -> None:
        self._handle = os.pidfd_open(number)

    def alive(self) -> bool:
        return not select.select([self._handle], [], [], 0)[0]

    def kill(self) -> None:
        if self.alive():
            with suppress(ProcessLookupError):  # ended meanwhile
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def end(self) -> None:
        ended = select.select([self._handle], [], [], 60)[0]
        assert ended, "it hangs"
        os.close(self._handle)


@dataclass(frozen=True, kw_only=True)
class Life:
    """The ranks of one start."""

    ranks: list[Rank]
    meeting: Path

    def met(self) -> int:
        """How often rank 0 came to a meeting."""
        return int(np.fromfile(self.meeting, np.int64, 1)[0])

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()

    def end(self) -> None:
        """Wait until all have ended."""
        for rank in self.ranks:
            rank.end()


def checkpoint(run: Path) -> dict[str, Any]:
    file = run / "checkpoint.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"step": 0, "start": ""}
    return found


def begin(parent: Parent, data: Data, run: Path, size: int, steps: int, backwards: bool = False) -> Life:
    start, saved = ledger.new_start(run), checkpoint(run)
    run.mkdir(exist_ok=True)
    meeting = run / f"meeting-{start}"
    meeting.write_bytes(bytes(8 * size))
    common = {
        **vars(data),
        "run": str(run),
        "start": start,
        "parent": saved["start"],
        "step": saved["step"],
        "steps": steps,
        "size": size,
        "total": TOTAL,
        "micro": 1 if backwards else MICRO,
        "every": EVERY,
        "meeting": str(meeting),
        "backwards": backwards,
    }
    return Life(ranks=[Rank(parent.fork({**common, "rank": rank})) for rank in range(size)], meeting=meeting)


def harass(parent: Parent, data: Data, run: Path, steps: int, dice: random.Random) -> list[int]:
    """Start, kill and resize until nothing is left of 20 kills, then let it finish; gives the sizes."""
    sizes = [*SIZES, *(dice.choice(SIZES) for _ in range(KILLS - len(SIZES)))]
    dice.shuffle(sizes)
    lost: list[Life] = []  # of which somebody may still be running
    for size in sizes:
        life = begin(parent, data, run, size, steps)
        for old in lost:
            if dice.random() < 0.7:
                old.kill()
        meetings, deadline = dice.randrange(0, 14), time.monotonic() + 120
        while life.met() < meetings and any(rank.alive() for rank in life.ranks):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(dice.random() * 0.004)
        dice.choice(life.ranks).kill()
        if dice.random() < 0.5:  # or the others go on until they miss their peer, while the next start begins
            life.kill()
        lost.append(life)
    for life in lost:
        life.kill()
        life.end()
    last = begin(parent, data, run, dice.choice(SIZES), steps)
    last.end()
    assert checkpoint(run)["step"] == steps
    return sizes


def samples_of(run: Path, steps: int, sizes: list[list[int]]) -> np.ndarray:
    """Source, shard and row at each position, int64 [3, positions], from the ledger of micro-batches of one sample."""
    names = {
        ledger.combined([digest(*(np.array([value]) for value in sample))]): sample
        for source, shards in enumerate(sizes)
        for shard, count in enumerate(shards)
        for sample in ((source, shard, row) for row in range(count))
    }
    (start,) = history.read_starts(run)
    stretches, faults = history.chain([start])
    assert faults == []
    runs = history.extents(stretches[0])
    assert runs["begin"].tolist() == list(range(steps * TOTAL))
    return np.array([names[number] for number in runs["digest"].tolist()], np.int64).T


def compare(run: Path, expected: np.ndarray, steps: int) -> int:
    """Every position once, and its sample that of the undisturbed process; gives the number of records."""
    stretches, faults = history.chain(history.read_starts(run))
    assert faults == []
    at = compared = 0
    for stretch in stretches:
        for one in history.extents(stretch):
            assert one["begin"] == at
            at = int(one["end"])
            assert run_digest(expected[:, one["begin"] : at], int(one["batches"])) == one["digest"]
            compared += 1
    assert at == steps * TOTAL
    return compared


def write_set(folder: Path, sizes: list[int], buckets: list[str]) -> Path:
    folder.mkdir()
    shards, shapes = [], {"16x24": (2, 2, 3), "24x16": (2, 3, 2)} if buckets else {"": (2, 2, 2)}
    for number, size in enumerate(sizes):
        bucket, tar = buckets[number] if buckets else "", folder / f"{number:05d}.tar"
        with tarfile.open(tar, "w") as archive:
            for row in range(size):
                moments = np.random.default_rng((number, row)).normal(size=shapes[bucket]).astype(np.float16)
                member = tarfile.TarInfo(f"{number}{row:03d}.safetensors")
                member.size = len(content := pack(moments, np.zeros(3, np.uint16)))
                archive.addfile(member, io.BytesIO(content))
        keys = [f"{number}{row:03d}" for row in range(size)]
        pq.write_table(pa.table({"key": keys, **index.columns(keys, index.members(tar))}), tar.with_suffix(".parquet"))
        about = {"samples": size, "bytes": tar.stat().st_size, "sha256": sha256(tar), "bucket": bucket}
        shards.append(manifest.Shard(name=tar.stem, **about))
    contract = {"text_length": 3} | ({"buckets": shapes} if buckets else {"shape": shapes[""]})
    manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract))
    return folder


WHOLE = {"proportion": None, "upsample": 1.0, "repeat": None, "until": None}


@pytest.mark.parametrize("mixed", [False, True], ids=["one set", "two sources, buckets, damage, tombstones"])
def test_twenty_kills_and_resizes_consume_what_one_process_does(tmp_path: Path, mixed: bool) -> None:
    steps, dice = 90, random.Random(8 + mixed)
    sizes = [[13, 40, 7, 22, 31, 18], [25, 9, 30, 16]] if mixed else [[13, 40, 7, 22, 31, 18]]
    buckets = ["16x24", "24x16"] if mixed else []
    folders = [write_set(tmp_path / f"set{number}", one, (buckets * 3)[: len(one)]) for number, one in enumerate(sizes)]
    if mixed:
        harm(folders)
    data = Data(
        sets=[str(folder) for folder in folders],
        shares=[WHOLE | {"proportion": 0.3}, WHOLE] if mixed else [WHOLE],
        tombstones=["0003"] if mixed else [],
    )
    with forking(tmp_path) as parent:
        begin(parent, data, tmp_path / "calm", 1, steps, backwards=True).end()
        used = harass(parent, data, tmp_path / "harassed", steps, dice)
    assert set(used) == set(SIZES)
    expected = samples_of(tmp_path / "calm", steps, sizes)
    assert compare(tmp_path / "harassed", expected, steps) >= steps
    starts = [history.read_starts(tmp_path / name) for name in ("calm", "harassed")]
    reports = [prove(one, open_sets(one[-1].header, {})) for one in starts]
    for report in reports:
        assert report.faults == ()
        assert (report.proven, report.steps) == (True, steps)
    assert KILLS // 2 < len(reports[1].starts) <= KILLS + 1  # some were killed before they wrote a header
    assert reports[1].redone_steps > KILLS // 2
    assert reports[0].substituted == reports[1].substituted
    assert bool(reports[1].substituted) == mixed


def harm(folders: list[Path]) -> None:
    """Flip a bit in one tar, cut one short, and lose one."""
    flipped = folders[0] / "00001.tar"
    content = bytearray(flipped.read_bytes())
    content[5 * 1024 + 600] ^= 8
    flipped.write_bytes(content)
    cut = folders[0] / "00004.tar"
    cut.write_bytes(cut.read_bytes()[:-700])
    (folders[1] / "00003.tar").unlink()
