"""While a stage trains on SLURM: a job for each of its tasks at checkpoints, once the checkpoint is there.

Nothing of it may end the run: what cannot be submitted is said in the log, tried again, and left for launch/slurm.py.
"""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bigdiff.checkpoint import layout
from bigdiff.cluster import task
from bigdiff.cluster.clients import environment
from bigdiff.config.cluster import Cluster
from bigdiff.config.graph import at
from bigdiff.config.recipe import Task

PAUSE: Final = 5.0  # seconds between two looks at the run's checkpoints
AGAIN: Final = 300.0  # seconds until what could not be submitted is tried again
_LIMIT: Final = 120.0  # seconds that a submission may take

Submit = Callable[[Task, Path, Cluster], tuple[bool, str]]  # whether it went well, and a line about it


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What is done at checkpoints of a stage."""

    recipe: str
    tasks: tuple[Task, ...]
    cluster: Cluster


@dataclass(kw_only=True)
class _Watch:
    """What was done so far."""

    run: Path  # of the stage
    beside: Beside
    say: Callable[[str], None]
    submit: Submit
    settled: set[str] = field(default_factory=set)  # names of tasks at steps
    tries: dict[str, float] = field(default_factory=dict)  # when to try again, in seconds of the monotonic clock

    def look(self) -> None:
        """Submit what is due."""
        try:
            found = due(self.run, self.beside.tasks)
        except OSError as error:  # the next look may find the folder again
            self.say(f"checkpoints of {self.run} cannot be listed for the tasks beside it: {error}")
            return
        for one in found:
            if one.name in self.settled or time.monotonic() < self.tries.get(one.name, 0.0):
                continue
            folder = task.folder(str(self.run.parent), self.beside.recipe, one)
            well, line = (True, "") if task.done(one) else self.submit(one, folder, self.beside.cluster)
            if well:
                self.settled.add(one.name)
            else:
                self.tries[one.name] = time.monotonic() + AGAIN
            if line:
                self.say(line)


def due(run: Path, tasks: Iterable[Task]) -> list[Task]:
    """`tasks` at those checkpoints of a run that they are for, the oldest first."""
    steps = [layout.step_of(folder) for folder in reversed(layout.saved(run))]
    return [at(one, step) for step in steps for one in tasks if step % one.every == 0]


@contextmanager
def watching(
    run: Path, beside: Beside, say: Callable[[str], None], submit: Submit | None = None, pause: float = PAUSE
) -> Iterator[None]:
    """Look at the run's checkpoints in a thread, and a last time at the end, unless that is an exception."""
    watch = _Watch(run=run, beside=beside, say=say, submit=submit or outside)
    leave = threading.Event()

    def work() -> None:
        while not leave.wait(pause):
            watch.look()

    thread = threading.Thread(target=work, name="tasks at checkpoints", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leave.set()
        thread.join(_LIMIT)
    watch.look()


def outside(work: Task, folder: Path, cluster: Cluster) -> tuple[bool, str]:
    """Submit in a process that knows nothing of this job."""
    words = [sys.executable, "-m", "bigdiff.cluster.beside"]
    told = pickle.dumps((work, folder, cluster))
    try:
        done = subprocess.run(words, input=told, capture_output=True, timeout=_LIMIT, check=False, env=environment())
    except subprocess.TimeoutExpired:
        return False, f"{work.name} is not submitted: sbatch did not answer in {_LIMIT:.0f} s"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return False, f"{work.name} is not submitted: {said[-1].removeprefix('error: ') if said else done.returncode}"
    return True, done.stdout.decode(errors="replace").strip()
