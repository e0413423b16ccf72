"""A recipe's task as a job of one process: is it done, where are its logs, and what does the job do."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import submitit

from bigdiff.cluster.earlier import forget_earlier
from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.config.load import CONFIGS, dump, restore
from bigdiff.config.recipe import Task
from bigdiff.data import manifest

ROOT: Final = CONFIGS.parent
QUEUED: Final = "the job was submitted by another version of this program; cancel it, and submit it anew to go on"
_INPUT: Final = 2  # exit status of a door for unusable input
_LAST: Final = 2000  # bytes of standard error that hold its last sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskJob:
    """A task as a callable that submitit pickles and runs; its command continues when it is started again."""

    task: Task

    def __reduce__(self) -> tuple[Any, ...]:
        return queued, (dump(self.task),)  # by name, as a TrainJob

    def __call__(self) -> None:
        """Run the command to its end, with its output in the job's log.

        Raises:
            LastingError: when the command finds its input unusable, with its sentence.
            RunError: for any other end but success.
        """
        forget_earlier()
        status, said = run(command(self.task.run))
        if status == _INPUT:
            raise UsageError(said or f"task {self.task.name}: its input cannot be used; the log says why")
        if status:
            raise RunError(f"task {self.task.name} ended with status {status}{f': {said}' if said else ''}")
        if not done(self.task):
            raise LastingError(f"task {self.task.name} ended without {self.task.makes}, which its recipe says it makes")

    def checkpoint(self) -> Any:  # noqa: ANN401 (submitit is untyped here)
        """What submitit runs after a time-out or a preemption: the same."""
        return submitit.helpers.DelayedSubmission(self)


def queued(task: str) -> TaskJob:
    """The job whose task this is, as YAML.

    Raises:
        UsageError: for a setting that this version does not have.
    """
    return TaskJob(task=restore(Task, task, QUEUED))


def done(task: Task) -> bool:
    """Whether what the task makes is there: a whole shard set, or a file."""
    made = Path(task.makes)
    return (made / manifest.NAME).is_file() or made.is_file()


def folder(runs: str, recipe: str, task: Task) -> Path:
    """Where a task's logs and crashes are, as those of a stage are in its run's folder."""
    return Path(runs) / "jobs" / recipe / task.name


def command(words: Sequence[str]) -> list[str]:
    """What is run for a Task's words: this interpreter, and doors by their place in the repository, from any folder."""
    first, *rest = words
    return [sys.executable, first if first.startswith("-") else str(ROOT / first), *rest]


def run(words: list[str]) -> tuple[int, str]:
    """Run a command, passing on what it writes; its exit status and the last line of its standard error."""
    # SLURM sends its warning to all processes of a job; this one answers it, and the command would die of it
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGUSR2, before)
    last = b""
    assert process.stderr is not None
    while part := os.read(process.stderr.fileno(), 1 << 16):
        sys.stderr.buffer.write(part)
        sys.stderr.buffer.flush()
        last = (last + part)[-_LAST:]
    lines = last.decode(errors="replace").replace("\r", "\n").strip().splitlines()
    said = lines[-1].removeprefix("error: ").removeprefix("failed: ") if lines else ""
    return process.wait(), said
