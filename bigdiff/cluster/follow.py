"""A local job on the terminal: its log as it is written, its failure as a sentence, Ctrl-C as a saved checkpoint."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, Self

from submitit.core.utils import pickle_load

from bigdiff.config.errors import LastingError, NodeError, RunError, UsageError

POLL_SECONDS = 0.2
# Of no use to a reader: submitit's own lines, DeepSpeed's on its build, and a failing rank's trace, which stays in the
# log and comes again as one sentence, or shortened, at the end
_NOISE = re.compile(r"submitit (DEBUG|INFO|WARNING|ERROR) \(|DeepSpeed \S+ built successfully|\[rank\d+\]: ")
_KINDS: Final = {kind.__name__: kind for kind in (UsageError, RunError, LastingError, NodeError)}
_SENTENCE = re.compile(rf"^bigdiff\.config\.errors\.({'|'.join(_KINDS)}): (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Seconds given to processes before they are killed."""

    peers: float = 20.0  # after one has failed: the others' collectives break, or hang for engine.timeout_seconds
    saving: float = 180.0  # after Ctrl-C: one step and a checkpoint


PATIENCE = Patience()


class Tail:
    """The complete lines that were appended to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """New lines without their ends; of a progress bar's line only what it showed last."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as log:
            log.seek(self._position)
            new = log.read()
        self._position += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        shown = (line.decode(errors="replace").rstrip("\r").rpartition("\r")[2] for line in whole)
        return [line for line in shown if not _NOISE.match(line)]


def follow(job: Any, say: Callable[[str], None], patience: Patience = PATIENCE) -> list[Any]:  # noqa: ANN401 (submitit)
    """Pass the log of process 0 to `say` line by line until the submitit `job` ends; returns every process's result.

    Ctrl-C (or TERM, or the terminal's end) asks the processes to save and stop, and is raised again once they have;
    a second one kills them.

    Raises:
        UsageError, RunError: the same sentence when a process ended with one; RunError with the last lines of the
            error and the log's path for any other failure.
    """
    tail = Tail(job.paths.stdout)
    with _Stops() as stops:
        try:
            failed = _watch(job, tail, say, patience.peers)
        except KeyboardInterrupt:
            say("stopping: the run saves a checkpoint first (Ctrl-C again to stop at once)")
            _stop(job, tail, say, time.monotonic() + patience.saving, stops)
            raise
    if failed is not None:
        _fail(job, failed)
    results = [reported(job, number) for number in range(job.num_tasks)]
    return [value for _, value in filter(None, results)]


def _watch(job: Any, tail: Tail, say: Callable[[str], None], peers: float) -> int | None:  # noqa: ANN401
    """Wait for the job's end; the process that failed first, if any. Its peers are killed `peers` seconds later."""
    failed, deadline, seen = None, float("inf"), set[int]()
    while True:
        done = job.done(force_check=True)
        alive = _processes(job)
        _pass_on(tail, say)
        if failed is None:
            failed = _first_failed(job, set(range(job.num_tasks)) - set(alive) if done else seen - set(alive))
            deadline = time.monotonic() + peers if failed is not None else deadline
        if done:
            return failed
        seen |= set(alive)
        if time.monotonic() > deadline:
            _kill(alive)
        time.sleep(POLL_SECONDS)


def _stop(job: Any, tail: Tail, say: Callable[[str], None], deadline: float, stops: "_Stops") -> None:  # noqa: ANN401
    """Ask all processes to save and stop; kill them at the deadline or after a second Ctrl-C."""
    again = 0.0
    while not job.done(force_check=True):
        if stops.urgent or time.monotonic() > deadline:
            _kill(_processes(job))
        elif time.monotonic() > again:
            # submitit ignores the signal for a moment while a process starts, so it is sent more than once
            os.kill(int(job.job_id), signal.SIGTERM)  # the controller, which passes it on
            again = time.monotonic() + 5.0
        _pass_on(tail, say)
        time.sleep(POLL_SECONDS)
    _pass_on(tail, say)


def _pass_on(tail: Tail, say: Callable[[str], None]) -> None:
    for line in tail.lines():
        say(line)


def reported(job: Any, number: int) -> tuple[str, Any] | None:  # noqa: ANN401 (submitit is untyped here)
    """("success", value) or ("error", traceback) of one process, None before; submitit's own methods wait for all."""
    file = job.task(number).paths.result_pickle
    if not file.exists():
        return None
    outcome, value = pickle_load(file)  # written by our own process, in our own run folder
    return str(outcome), value


def sentence(trace: str) -> UsageError | RunError | None:
    """The error of ours that a process ended with, from its traceback; None for any other."""
    found = _SENTENCE.findall(trace)
    if not found:
        return None
    kind, words = found[-1]
    return _KINDS[kind](words)


def _first_failed(job: Any, ended: set[int]) -> int | None:  # noqa: ANN401
    """Of the processes that have `ended` the one that failed first: killed ones, then the oldest error."""
    results = {number: reported(job, number) for number in sorted(ended)}
    killed = [number for number, result in results.items() if result is None]
    if killed:
        return killed[0]
    errors = [number for number, result in results.items() if result is not None and result[0] == "error"]
    return min(errors, key=lambda number: job.task(number).paths.result_pickle.stat().st_mtime, default=None)


def _fail(job: Any, number: int) -> NoReturn:  # noqa: ANN401
    log, result = job.task(number).paths.stdout, reported(job, number)
    if result is None:
        raise RunError(f"process {number} was killed (out of memory?); its log is {log}")
    trace = str(result[1]).strip()
    spoken = sentence(trace)
    if spoken is not None:
        raise spoken
    last = "\n".join(trace.splitlines()[-12:])
    raise RunError(f"process {number} ended with an error:\n{last}\nits log is {log}")


def _processes(job: Any) -> dict[int, int]:  # noqa: ANN401
    """{task number: process id} of the job's running tasks, from /proc: submitit's controller does not tell."""
    wanted = b"SUBMITIT_LOCAL_JOB_ID=" + str(job.job_id).encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != int(job.job_id):
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        number = next((entry for entry in variables if entry.startswith(b"SUBMITIT_LOCAL_GLOBALID=")), None)
        if wanted in variables and number is not None:
            found[int(number.partition(b"=")[2])] = int(folder.name)
    return found


def _kill(processes: dict[int, int]) -> None:
    for pid in processes.values():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class _Stops:
    """Makes Ctrl-C, TERM and the terminal's end raise KeyboardInterrupt once; a later one is `urgent`.

    TERM counts, so that a supervisor does not leave processes behind. What comes within a second of the first is the
    same stop: `timeout` signals its child and then the child's whole group.
    """

    def __init__(self) -> None:
        self.urgent = False
        self._first = float("inf")
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first == float("inf"):
            self._first = now
            raise KeyboardInterrupt
        self.urgent = self.urgent or now > self._first + 1.0
