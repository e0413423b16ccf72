"""Processes that end with the one that started them, and that give the same outcome whatever their number."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Final, TypeVar

from tqdm import tqdm

from bigdiff.config.errors import RunError

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends in whatever way (Linux; else nothing)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


class Workers:
    """Up to `processes` processes, started when they are first needed and kept for several phases.

    They are started anew (no fork): a fork would inherit the job's lock and other libraries' threads.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, function: Callable[[Task], Outcome], tasks: Sequence[Task], title: str) -> Iterator[Outcome]:
        """`function` of each task, in the tasks' order, with a progress bar.

        Raises:
            RunError: when a process was killed, as the kernel does when memory runs out.
        """
        with tqdm(total=len(tasks), desc=title, unit="file", disable=not tasks) as bar:
            if self._processes == 1 or len(tasks) <= 1:
                outcomes: Iterator[Outcome] = map(function, tasks)
            else:
                futures = [self._started().submit(function, task) for task in tasks]
                outcomes = (_result(future, title) for future in futures)
            for outcome in outcomes:
                yield outcome
                bar.update()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes, mp_context=get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
            )
        return self._pool


def _result(future: "Future[Outcome]", title: str) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"a process was killed while {title}, most likely for want of memory: "
            "the same command again continues, and fewer processes need less"
        ) from error


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it cancels what has not begun
    end_with_parent(parent)
