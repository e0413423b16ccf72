"""How each stage and task of a chain stands: its job, where it is, how fast, what is left, and what ended it before.

Read from the run's folder, and from SLURM where that is here: a job's state is asked of `squeue`, never guessed.
"""

import fcntl
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.checkpoint import layout
from bigdiff.cluster import task
from bigdiff.cluster.clients import shown, squeue
from bigdiff.cluster.crash import Crash, crashes
from bigdiff.cluster.starts import CRASHED, Start, starts
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage
from bigdiff.metrics import readings

_JOB: Final = re.compile(r"\d{8}-\d{6}-(\d+)")  # a job's folder among the logs: when it was submitted, and its id


@dataclass(frozen=True, kw_only=True, slots=True)
class Queued:
    """A job that SLURM knows."""

    state: str  # "RUNNING", "PENDING", ...
    reason: str  # why it waits
    nodes: str  # in SLURM's notation
    restarts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What lies in a run's folder."""

    job: str  # of the newest submission, a process id on one machine; "" before the first
    on_slurm: bool  # where that was submitted
    held: bool  # whether a process of this machine trains it
    checkpoint: int  # step of the newest, 0 before the first
    reading: Mapping[str, float]  # the last line of metrics.jsonl, {} before the first
    crashes: tuple[Crash, ...] = ()
    starts: tuple[Start, ...] = ()  # of the newest submission, the oldest first


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A line of the table."""

    name: str  # of the stage or task
    state: str  # "finished", "running", "pending (Priority)", "stopped", "failed", "not started"
    job: str
    step: int
    steps: int  # 0 of a task
    images_per_second: float | None  # None before the first reading
    seconds_left: float | None  # while it runs
    checkpoint: int
    restarts: int
    why: str  # of the newest crash
    again: str  # why the job began again last, where that was no crash


def stand(work: Stage | Task, found: Found, queued: Queued | None) -> Standing:
    """The line of a stage or task, from what its folder holds and what SLURM says of its job."""
    step, steps, rate, left = 0, 0, None, None
    state = _state(work, found, queued)
    if isinstance(work, Stage):
        step, steps = max(int(found.reading.get("step", 0)), found.checkpoint), work.steps
        rate = found.reading.get("speed/images_per_second")
        left = (steps - step) * work.batch.total / rate if rate and state == "running" else None
    own = [one for one in found.crashes if one.job.endswith(f"-{found.job}")]
    before = found.starts[-2].ended if len(found.starts) > 1 else ""
    known = max(len(found.starts) - 1, sum(one.kind in ("passing", "node") for one in own))
    return Standing(
        name=work.name,
        state=state,
        job=found.job,
        step=step,
        steps=steps,
        images_per_second=rate,
        seconds_left=left,
        checkpoint=found.checkpoint,
        restarts=queued.restarts if queued else known,
        why=found.crashes[-1].why if found.crashes else "",
        again="" if before.startswith(CRASHED) else before,
    )


def _state(work: Stage | Task, found: Found, queued: Queued | None) -> str:
    if task.done(work) if isinstance(work, Task) else found.checkpoint >= work.steps:
        return "finished"
    if queued is not None:
        waits = f" ({queued.reason})" if queued.state == "PENDING" and queued.reason not in ("", "None") else ""
        return queued.state.lower() + waits
    if found.held:
        return "running"
    if found.crashes and found.crashes[-1].step >= found.checkpoint:
        return "failed"
    begun = found.checkpoint or found.reading or (isinstance(work, Task) and found.job)
    return "stopped" if begun else "not started"


def find(run: Path) -> Found:
    """What lies in the folder of a run.

    Raises:
        RunError: when its record of crashes or of starts cannot be read.
    """
    newest, job = layout.latest(run), _newest_job(run / "logs")
    return Found(
        job=job.rpartition("-")[2],
        on_slurm=any((run / "logs" / job).glob("*_submission.sh")) if job else False,
        held=_is_held(run / "running.lock"),
        checkpoint=layout.step_of(newest) if newest else 0,
        reading=readings.last(run / layout.METRICS),
        crashes=tuple(crashes(run / "logs")),
        starts=tuple(one for one in starts(run / "logs") if one.job == job),
    )


def queue(jobs: Sequence[str]) -> dict[str, Queued]:
    """Those of `jobs` that SLURM still has in its queue; none without SLURM.

    Raises:
        RunError: when it does not answer.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    found = {}
    for line in squeue("--format=%i|%T|%r|%N", f"--jobs={','.join(jobs)}"):
        job, state, reason, nodes = line.split("|", 3)
        found[job] = Queued(state=state, reason=reason, nodes=nodes, restarts=int(shown(job, "Restarts") or 0))
    return found


def waiting(run: Path) -> tuple[str, str]:
    """The job of a run that SLURM has yet to start, or to end, and its state; ("", "") where there is none.

    Raises:
        RunError: as `queue`.
    """
    found = find(run)
    queued = queue([found.job] if found.on_slurm else []).get(found.job)
    if queued is None or queued.state == "COMPLETING":
        return "", ""
    return found.job, queued.state.lower()


def _newest_job(logs: Path) -> str:
    """The folder of the job that was submitted last."""
    return max((folder.name for folder in logs.glob("*") if _JOB.fullmatch(folder.name)), default="")


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine holds a run (bigdiff.cluster.job.alone)."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
