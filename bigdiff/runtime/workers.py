"""Processes that end with the one that started them, and that give the same outcome whatever their number."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import active_children, current_process, get_context
from typing import Final, Protocol, TypeVar

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


class Spread(Protocol):
    """Where tasks run: Workers on this machine, or bigdiff.cluster.array.Array on a cluster."""

    @property
    def machines(self) -> int:
        """On which tasks run at the same time."""

    def each(self, function: Callable[[Task], Outcome], tasks: Sequence[Task], title: str) -> Iterator[Outcome]:
        """`function` of each task, in the tasks' order."""

    def on_devices(self) -> AbstractContextManager["Spread"]:
        """The same for work with networks."""


class Workers:
    """Up to `processes` processes, started when they are first needed and kept for several phases.

    They are started anew (no fork): a fork would inherit the job's lock and other libraries' threads.
    """

    def __init__(self, processes: int, devices: Sequence[str] = ()) -> None:
        """`devices`: one for each process, as in CUDA_VISIBLE_DEVICES, of which it sees no other."""
        self._processes, self._devices = processes, tuple(devices)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is None:
            return
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)  # tasks under way end first
        except KeyboardInterrupt:  # a second one: they are lost, as in a kill; without this the process would never end
            for process in active_children():
                process.kill()
            raise

    @property
    def machines(self) -> int:
        """Machines on which tasks run: this one."""
        return 1

    def on_devices(self, processes: int = 0) -> "Workers":
        """Those for work with networks: a process for each GPU, or this one, where torch takes all cores.

        `processes`: so many of them, which share the GPUs.
        """
        import torch

        found = torch.cuda.device_count()
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return Workers(processes or max(1, found), named or [str(number) for number in range(found)])

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
                self._processes,
                mp_context=get_context("spawn"),
                initializer=_start,
                initargs=(os.getpid(), self._devices),
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


def _start(parent: int, devices: tuple[str, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it cancels what has not begun
    end_with_parent(parent)
    if devices:  # before torch looks; a pool's processes are numbered in the order of their start
        number = current_process()._identity[-1] - 1
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
