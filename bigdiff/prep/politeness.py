"""No more than so many connections to one host at a time: a list of URLs can hold a million of one small server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache


@dataclass(slots=True)
class _Door:
    """One host's; forgotten when nobody is there or waits."""

    free: threading.Semaphore
    present: int = 0


@dataclass(slots=True)
class Turns:
    """The connections of this process, at most `limit` to each host."""

    limit: int
    _doors: dict[str, _Door] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def at(self, host: str) -> Iterator[float]:
        """Wait for a turn and hold it; gives the seconds waited, which are no fault of the host's."""
        with self._lock:
            door = self._doors.setdefault(host, _Door(threading.Semaphore(self.limit)))
            door.present += 1
        began = time.monotonic()
        try:
            with door.free:
                yield time.monotonic() - began
        finally:
            with self._lock:
                door.present -= 1
                if not door.present:
                    del self._doors[host]


@cache
def turns(limit: int) -> Turns:
    """Those of this process; to be asked for first after a fork."""
    return Turns(limit)
