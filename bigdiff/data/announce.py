"""The samples that a process reads next, asked for from the disk in the order of its files before they are read.

Samples of a window are read in random order, one by one and by a few threads, which a disk serves slower than many
sorted requests at once. The order is arithmetic, so it is known which come next: a thread finds where the members of
the next steps lie and names these places to the kernel, which reads. It asks for this process's samples and for no
others, so processes and nodes that share a window do not read it several times, and a resume does not read what was
consumed. What the page cache has already is left alone, at the cost of a few probes.

At most `size` bytes are asked for ahead of what was consumed, in halves: while one is consumed, the other is read.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from threading import Condition, Thread
from typing import Final, Protocol

import numpy as np

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data.course import Course, Picks, joined
from bigdiff.data.spans import Spans, ask, cached

PROBES: Final = 16  # samples of some steps: if the page cache has all of them, the steps are taken to be there
PAGE: Final = 4096  # bytes that the smallest sample takes
TOGETHER: Final = 64  # spans asked for at once: `close` waits for these at most
Wish = frozenset[tuple[int, int]]  # (source, shard)
_NONE: Final[Wish] = frozenset()


class Located(Protocol):
    """What can tell where samples lie: a Reader of bigdiff.data.stream."""

    def spans(self, picks: Picks) -> AbstractContextManager[Spans]:
        """Where those of the picks lie that are on a disk and sound, sorted; good until the block ends."""


class Announcer:
    """The thread of one process, for its samples [begin, end) = `part` of each global batch, from step `step` on.

    `size`: bytes that may have been asked for and not consumed; of steps that are larger only the first is asked for.
    0: there is no thread.
    """

    def __init__(self, reader: Located, course: Course, part: tuple[int, int], step: int, size: int) -> None:
        self.reader, self.course, self.part, self.size = reader, course, part, size
        self._changed = Condition()
        self._over = False
        self._reached, self._wake = step, step  # the step that is consumed; the one at which the thread has to know
        self._wanted = _NONE
        self._asked: deque[tuple[int, float]] = deque()  # the step behind some steps, and their bytes
        self._rate = float(PAGE * (part[1] - part[0]))  # bytes of a step, the most that were seen
        self._thread = Thread(target=self._run, name="stream-announce", daemon=True) if size else None
        if self._thread is not None:
            self._thread.start()

    def want(self, shards: Iterable[tuple[int, int]]) -> None:
        """(source, shard) that may be opened now; steps that read others wait."""
        with self._changed:
            self._wanted = frozenset(shards)
            self._changed.notify()

    def reached(self, step: int) -> None:
        """All steps before this one have been consumed."""
        self._reached = step
        if step >= self._wake:
            with self._changed:
                self._changed.notify()

    def close(self) -> None:
        """End the thread; what was asked for goes on its way."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        step, count, used = self._reached, 1, self._wanted  # the last: a wish of which nothing is left to ask for
        while self._rate <= self.size:
            with self._changed:
                while not self._over and (self._wanted is used or not self._room(count)):
                    self._changed.wait()
                if self._over:
                    return
                known, step = self._wanted, max(step, self._reached)  # what was read needs no asking
            last = step + count if self.course.steps is None else min(step + count, self.course.steps)
            if step >= last:
                return
            try:
                end = self._announce(step, last, known)
            except (UsageError, RunError):  # of a shard that cannot be opened: whoever reads it is told
                return
            step, used = end, _NONE if end == last else known
            count = max(1, min(2 * count, int(self.size / 2 / self._rate)))  # small at first: the reading has begun

    def _room(self, count: int) -> bool:
        while self._asked and self._asked[0][0] <= self._reached:
            self._asked.popleft()
        self._wake = self._asked[0][0] if self._asked else self._reached
        if self._asked and self._wake <= self._reached:  # consumed between these lines: nobody will tell
            return self._room(count)
        return sum(size for _, size in self._asked) + count * self._rate <= self.size

    def _announce(self, step: int, last: int, known: Wish) -> int:
        """Ask for the steps from `step` on, before `last`, whose shards may be opened; gives the step behind them."""
        if self._there(step, last, known):
            self._asked.append((last, (last - step) * self._rate))
            return last
        found = []
        for number in range(step, last):
            picks = self.course.locate(number, *self.part)
            if not _shards([picks]) <= known:
                break
            found.append(picks)
        if found:
            with self.reader.spans(joined(found)) as spans:
                self._rate = max(self._rate, spans.bytes / len(found))
                self._asked.append((step + len(found), float(spans.bytes)))
                for begin in range(0, len(spans), TOGETHER):
                    if self._over:
                        break
                    ask(spans[begin : begin + TOGETHER])
        return step + len(found)

    def _there(self, step: int, last: int, known: Wish) -> bool:
        begin, size = self.part[0], self.part[1] - self.part[0]
        probes = np.unique(np.linspace(0, (last - step) * size - 1, PROBES).astype(np.int64)).tolist()
        places = [(step + probe // size, begin + probe % size) for probe in probes]
        some = [self.course.locate(number, at, at + 1) for number, at in places]
        if not _shards(some) <= known:
            return False
        with self.reader.spans(joined(some)) as spans:
            return cached(spans)


def _shards(some: Sequence[Picks]) -> Wish:
    return frozenset(pair for picks in some for pair in zip(picks.sources.tolist(), picks.shards.tolist(), strict=True))
