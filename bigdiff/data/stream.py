"""From a course to this process's batches: threads read ahead into a ring of buffers, damaged samples are replaced.

The generator knows no format: a Reader puts the members of some samples into a buffer (bigdiff.data.latents,
bigdiff.data.images). No worker process is started, and nothing is pickled.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeVar

import numpy as np
import xxhash

from bigdiff.config.errors import LastingError, UsageError
from bigdiff.data.announce import Announcer
from bigdiff.data.course import Course, Picks, joined
from bigdiff.data.damage import ATTEMPTS, TOMBSTONE, Consumed, Quarantine, Substitution
from bigdiff.data.order import Ints
from bigdiff.data.spans import Spans

COPIES = 2  # of a tar that are read when the first was spoiled
PIECE = 8  # samples that a thread takes at once, at least
TASK = 256  # samples of several small steps that a thread takes at once: each hand-over costs as much as ten samples
LOCATED = 16  # small steps that are looked up at once: the first costs as much as the next three

Held = TypeVar("Held")
Made = TypeVar("Made", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The part of each global batch that one process reads: `total` / `size` consecutive samples, `micro` at a time."""

    total: int  # samples of a global batch
    micro: int
    rank: int
    size: int

    @property
    def begin(self) -> int:
        """Offset of this process's first sample in each global batch."""
        return self.rank * (self.total // self.size)

    @property
    def end(self) -> int:
        """Offset behind its last one."""
        return self.begin + self.total // self.size

    @property
    def starts(self) -> range:
        """Offset of each of its micro-batches."""
        return range(self.begin, self.end, self.micro)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """How far and how parallel the reading is."""

    steps: int = 2  # global batches read before they are asked for
    threads: int = 2
    windows: int = 2  # windows behind the present one whose shards a storage fetches, as far as it has room
    disk_bytes: int = 1 << 30  # of the next samples of sets in folders, that the disk is asked for before they are read


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """A sample that could not be used: its index in the request, its tar, where in it, and why."""

    index: int
    copy: object  # of the tar, that was read; compared by identity
    tar: str
    offset: int | None  # None: the whole tar is bad
    reason: str

    @property
    def doubtful(self) -> bool:
        """Whether another copy of the tar may have it."""
        return self.offset is not None and self.reason != TOMBSTONE


class Reader(Protocol[Held, Made]):
    """Puts samples into buffers; `fill` is called from several threads, for different rows of a buffer."""

    def hold(self, samples: int) -> Held:
        """A buffer for so many samples of any one bucket, to be used again and again."""

    def want(self, shards: Sequence[tuple[int, int]]) -> None:
        """(source, shard) in order of need: fetch and keep these, let go of all others."""

    def fill(self, held: Held, row: int, position: int, picks: Picks) -> list[Bad]:
        """Put the picked samples into rows `row`, ... of the buffer; they stand at run positions `position`, ..."""

    @property
    def on_disk(self) -> bool:
        """Whether `spans` finds something."""

    def spans(self, picks: Picks) -> AbstractContextManager[Spans]:
        """Where those of the picks lie that are on a disk and sound, sorted; good until the block ends."""

    def recheck(self, read: Iterable[tuple[int, int, object]]) -> bool:
        """(source, shard, copy) of bad samples: prove the copies sound or give them up; whether to try again."""

    def make(self, held: Held, row: int, picks: Picks, consumed: Consumed, wait_seconds: float) -> Made:
        """The batch whose samples are in the buffer from `row` on."""

    def interrupt(self) -> None:
        """Make calls of `fill` that wait for a storage end with an error, soon; the reader is of no use then."""


@dataclass(frozen=True, slots=True)
class _Piece:
    picks: Picks  # as really read
    substituted: tuple[Substitution, ...]


@dataclass(frozen=True, slots=True)
class _Step(Generic[Held]):
    number: int
    held: Held
    picks: Picks  # of this process's part, by the course
    pieces: list[tuple[Future[list[_Piece]], int]]  # what fills the buffer, in order: a task and its number in that


def batches(
    reader: Reader[Held, Made], course: Course, part: Slice, start: int, ahead: Ahead, quarantine: Quarantine
) -> Generator[list[Made], None, None]:
    """From position `start` on, to the end of the course if it has one: this process's micro-batches of each step.

    A batch's tensors lie in a buffer that is filled again when the next one is asked for: copy what must last.
    Closing the generator ends its threads.

    Raises:
        UsageError: when `start` is no multiple of the global batch, or that does not divide over the processes.
        RunError: when a storage cannot be reached.
        LastingError: when no substitute of a damaged sample is good.
    """
    if start % part.total or part.total % (part.size * part.micro):
        raise UsageError(
            f"position {start} and {part.size} processes x {part.micro} samples do not divide a global batch of "
            f"{part.total}: the batch size cannot change within a run"
        )
    samples = part.end - part.begin
    together = max(1, min(ahead.steps, TASK // samples))  # steps
    rings = [[reader.hold(samples) for _ in range(together)] for _ in range(-(-ahead.steps // together) + 1)]
    pending: deque[tuple[list[Held], list[_Step[Held]]]] = deque()
    first = step = start // part.total
    announced = ahead.disk_bytes if reader.on_disk else 0
    with (
        ThreadPoolExecutor(ahead.threads, thread_name_prefix="stream") as pool,
        closing(Announcer(reader, course, (part.begin, part.end), first, announced)) as disk,
    ):
        work, located = _Work(reader, course, part, ahead, quarantine, pool, disk), _located(course, part, first)
        asked = pool.submit(work.ask, step, step)
        try:
            while True:
                while rings and (course.steps is None or step < course.steps):
                    if asked.done() and (turn := asked.result()) is not None and step >= turn:
                        asked = pool.submit(work.ask, max(step - ahead.steps, first), step)
                    ring = rings.pop()
                    pending.append((ring, work.submit(step, ring, list(islice(located, len(ring))))))
                    step += len(pending[-1][1])
                if not pending:
                    return
                ring, steps = pending[0]
                ready: deque[list[Made]] = deque()
                for number, one in enumerate(steps):
                    disk.reached(one.number)
                    if not ready:
                        ready.extend(work.finish_some(steps[number:]))
                    yield ready.popleft()
                rings.append(pending.popleft()[0])
        finally:
            _end(reader, [task for _, steps in pending for one in steps for task, _ in one.pieces])


def _located(course: Course, part: Slice, step: int) -> Iterator[Picks]:
    """What this process reads in each step from `step` on."""
    together = max(1, min(LOCATED, 4 * TASK // (part.end - part.begin)))
    while course.steps is None or step < course.steps:
        last = step + together if course.steps is None else min(step + together, course.steps)
        yield from [course.locate(number, part.begin, part.end) for number in range(step, last)]
        step = last


def _end(reader: Reader[Held, Made], tasks: Sequence[Future[list[_Piece]]]) -> None:
    for task in tasks:
        task.cancel()
    _, running = wait([task for task in tasks if not task.cancelled()], timeout=1.0)
    if running:  # it waits for a remote shard, perhaps for minutes
        reader.interrupt()


@dataclass(frozen=True, slots=True)
class _Work(Generic[Held, Made]):
    reader: Reader[Held, Made]
    course: Course
    part: Slice
    ahead: Ahead
    quarantine: Quarantine
    pool: ThreadPoolExecutor
    disk: Announcer

    def ask(self, since: int, step: int) -> int | None:
        """Tell the reader what is read from `since` on; gives the step in which that changes, if it ever does."""
        part = self.part
        wanted = self.course.ahead(since, part.begin, part.end, self.ahead.windows)
        self.reader.want(wanted)
        self.disk.want(wanted)
        return self.course.turnover(step, part.begin, part.end)

    def submit(self, step: int, ring: Sequence[Held], picked: Sequence[Picks]) -> list[_Step[Held]]:
        """Start to read `step` into the first of these buffers, the steps behind it into the others: these picks."""
        threads = self.ahead.threads
        steps = [_Step(step + number, ring[number], picks, []) for number, picks in enumerate(picked)]
        if len(ring) > 1:  # small steps: a task has whole ones
            size = -(-len(steps) // threads)
            for begin in range(0, len(steps), size):
                some = steps[begin : begin + size]
                task = self.pool.submit(self.read_all, [(one, 0, len(one.picks.rows)) for one in some])
                for number, one in enumerate(some):
                    one.pieces.append((task, number))
            return steps
        size = max(PIECE, -(-len(picked[0].rows) // threads))
        for row in range(0, len(picked[0].rows), size):
            steps[0].pieces.append((self.pool.submit(self.read_all, [(steps[0], row, size)]), 0))
        return steps

    def read_all(self, parts: Sequence[tuple[_Step[Held], int, int]]) -> list[_Piece]:
        """Fill parts of the buffers of some steps: from a row on, so many rows."""
        begin = self.part.begin
        return [
            self.read(one.held, row, one.number * self.part.total + begin + row, _cut(one.picks, row, count))
            for one, row, count in parts
        ]

    def read(self, held: Held, row: int, position: int, picks: Picks) -> _Piece:
        """Fill a piece of a buffer; what is bad is replaced."""
        bad = self.fill(held, row, position, picks)
        if not bad:
            return _Piece(picks, ())
        sources, shards, rows = picks.sources.copy(), picks.shards.copy(), picks.rows.copy()
        substituted = []
        for one in bad:
            at = one.index
            lost = Substitution(
                position=position + at,
                source=int(sources[at]),
                shard=int(shards[at]),
                row=int(rows[at]),
                reason=one.reason,
            )
            self.quarantine.report(one.tar, lost.row, one.offset, one.reason)
            (sources[at], shards[at], rows[at]), worse = self.replace(held, row + at, lost, picks.bucket)
            substituted += [lost, *worse]
        return _Piece(Picks(bucket=picks.bucket, sources=sources, shards=shards, rows=rows), tuple(substituted))

    def fill(self, held: Held, row: int, position: int, picks: Picks) -> list[Bad]:
        """Put these samples into the buffer; gives those that are bad in the set itself, not in a copy of a tar."""
        bad = self.reader.fill(held, row, position, picks)
        for _ in range(COPIES if bad else 0):
            read = {
                (int(picks.sources[one.index]), int(picks.shards[one.index]), one.copy) for one in bad if one.doubtful
            }
            if not self.reader.recheck(read):
                break
            bad = self.reader.fill(held, row, position, picks)
        return bad

    def replace(
        self, held: Held, row: int, lost: Substitution, bucket: str
    ) -> tuple[tuple[int, int, int], list[Substitution]]:
        """Put the first good substitute into `row` of the buffer: its place, and those before it that were bad, too."""
        worse: list[Substitution] = []
        for attempt in range(1, ATTEMPTS + 1):
            found = self.course.substitute(lost.position, attempt)
            source, shard, number = (np.array([value], np.int64) for value in found)
            single = Picks(bucket=bucket, sources=source, shards=shard, rows=number)
            bad = self.fill(held, row, lost.position, single)
            if not bad:
                return found, worse
            worse.append(
                Substitution(
                    position=lost.position, source=found[0], shard=found[1], row=found[2], reason=bad[0].reason
                )
            )
        raise LastingError(
            f"position {lost.position}: sample {lost.row} of shard {lost.shard} is bad ({lost.reason}) and so are "
            f"{ATTEMPTS} others that could take its place: the set is damaged or taken down as a whole; rebuild it"
        )

    def finish_some(self, steps: Sequence[_Step[Held]]) -> list[list[Made]]:
        """The micro-batches of the first of these steps, and of those behind it that are read: cheaper in one go."""
        behind = takewhile(lambda step: all(_sound(task) for task, _ in step.pieces), steps[1:])
        return [self.finish(steps[0]), *(self.finish(step) for step in behind)]

    def finish(self, step: _Step[Held]) -> list[Made]:
        """The micro-batches of a step, once all of it is read."""
        began = time.perf_counter()
        pieces = [task.result()[number] for task, number in step.pieces]
        waited = time.perf_counter() - began
        substituted = [lost for piece in pieces for lost in piece.substituted]
        picks = joined([piece.picks for piece in pieces]) if substituted else step.picks
        part, made = self.part, []
        for start in part.starts:
            some = _cut(picks, start - part.begin, part.micro)
            position = step.number * part.total + start
            consumed = Consumed(
                position=position,
                samples=part.micro,
                digest=digest(some.sources, some.shards, some.rows),
                substituted=tuple(one for one in substituted if position <= one.position < position + part.micro),
            )
            made.append(self.reader.make(step.held, start - part.begin, some, consumed, waited))
            waited = 0.0
        return made


def _sound(task: Future[list[_Piece]]) -> bool:
    return task.done() and task.exception() is None


def digest(sources: Ints, shards: Ints, rows: Ints) -> int:
    """What `Consumed.digest` is of these samples."""
    hashed = xxhash.xxh3_64()
    for one in (sources, shards, rows):
        hashed.update(np.ascontiguousarray(one, "<i8").data)
    return hashed.intdigest()


def _cut(picks: Picks, begin: int, count: int) -> Picks:
    if count >= len(picks.rows):
        return picks
    part = slice(begin, begin + count)
    return Picks(bucket=picks.bucket, sources=picks.sources[part], shards=picks.shards[part], rows=picks.rows[part])
