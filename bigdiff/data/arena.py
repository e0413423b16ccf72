"""A process's memory of samples that it has read and checked, from which later epochs get them without a file.

Nothing is ever let go. An epoch visits each sample once: memory smaller than the set that gave up the oldest for the
newest would have lost each sample before its next visit, while what came first and stays serves its share of every
epoch.
"""

import ctypes
import mmap
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from bigdiff.config.errors import UsageError
from bigdiff.data.order import Ints

NOWHERE: Final = -1  # in Kept.rows; `_preads.c` writes less while it copies a row, for which nobody waits


class Room(ctypes.Structure):
    """For `_preads.c`, whose threads fill it: the memory, its bytes, and how many of them are given out.

    More given out than there are: a sample found no room, and the memory takes no others.
    """

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_int64), ("used", ctypes.c_int64))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    """Where the samples of a shard lie; the memory lasts as long as one of these."""

    rows: Ints  # [rows], below 0 where one is not there
    room: Room
    memory: npt.NDArray[np.uint8]

    def has(self, rows: Ints) -> npt.NDArray[np.bool_]:
        """Which of these rows are there: [n]."""
        found: npt.NDArray[np.bool_] = self.rows[rows] >= 0
        return found


class Arena:
    """So many bytes for the samples of one process, of any number of sets.

    They are the process's only as far as they are filled: the kernel gives a page when it is first written to.

    Raises:
        UsageError: when the system refuses so many.
    """

    def __init__(self, size: int) -> None:
        try:
            mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(
                f"data.memory_gb={size / 1e9:g}: the system refuses a process so much memory ({error}): lower it"
            ) from error
        with suppress(OSError, AttributeError):  # a kernel, or a system, without larger pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        self._memory: npt.NDArray[np.uint8] | None = np.frombuffer(mapped, np.uint8)
        self._room = Room(self._memory.ctypes.data, size, 0)
        self._shards: dict[tuple[str, bytes], Kept] = {}
        self._lock = Lock()

    @property
    def used(self) -> int:
        """Bytes that are filled, or about to be."""
        return min(int(self._room.used), int(self._room.size))

    @property
    def full(self) -> bool:
        """Whether a sample found no room."""
        return bool(self._room.used > self._room.size)

    def kept(self, name: str, checksums: memoryview) -> Kept | None:
        """Where the samples of a shard lie, known by its place and its index's checksums; None: none are kept.

        What was kept outlives the closing of its shard. One that was replaced has other checksums and begins anew; of
        those first opened when there is no room nothing is remembered. Takes 8 bytes a sample of the shard more.
        """
        key = name, xxhash.xxh3_128_digest(checksums)
        with self._lock:
            if key not in self._shards and self._memory is not None and not self.full:
                rows = np.full(len(checksums), NOWHERE, np.int64)
                self._shards[key] = Kept(rows=rows, room=self._room, memory=self._memory)
            return self._shards.get(key)

    def close(self) -> None:
        """Give the memory back, as soon as the last shard that reads from it is closed."""
        with self._lock:
            self._shards.clear()
            self._memory = None
