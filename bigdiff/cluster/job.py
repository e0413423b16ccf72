"""What each process of a job runs: meet the others, train the stage, hand the job back to SLURM when told to stop.

The requeue contract. submitit installs a handler for USR2 that re-submits the job, but it runs on rank 0 alone and in
the middle of a step, where a ZeRO checkpoint (a collective) would deadlock. So training takes over the signals, all
ranks agree on the stop at a step's end and save together; `finished=False` comes back, and only then rank 0 calls
submitit's handler, while the others wait to be ended with the job: one that exits could end rank 0 before its call.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster import starts
from bigdiff.cluster.clients import state
from bigdiff.cluster.crash import endured
from bigdiff.cluster.earlier import forget_earlier
from bigdiff.cluster.ready import reached
from bigdiff.cluster.rendezvous import export, find, first_address
from bigdiff.cluster.task import QUEUED
from bigdiff.cluster.watcher import Beside, watching
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import LastingError, RunError
from bigdiff.config.load import dump, restore
from bigdiff.config.recipe import Task
from bigdiff.config.rules import check
from bigdiff.config.schema import Stage

REQUEUE_SECONDS = 600  # how long the other ranks wait for rank 0 to requeue the job
STOPS = (signal.SIGTERM, signal.SIGUSR2)  # what a local job's follower or controller sends


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """Where a job's training ended; like train.run.Outcome, but the submitting process reads it without torch."""

    step: int
    samples_seen: int
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """A stage as a callable that submitit pickles and runs in every process."""

    stage: Stage
    cluster: Cluster
    beside: Beside | None = None  # what is submitted while it trains
    port: int = 0  # where a local job's processes meet; a SLURM job computes its own

    def __reduce__(self) -> tuple[Any, ...]:
        # A job waits for weeks, and starts again with the code of that day. By themselves these classes are pickled as
        # lists of values, which one setting more in the newer code would shift, in silence.
        beside = (self.beside.recipe, *map(dump, self.beside.tasks)) if self.beside else ()
        return queued, (dump(self.stage), dump(self.cluster), beside, self.port)

    def __call__(self) -> Ended:
        """Train until the stage is done or a stop was agreed on; in the second case a SLURM job is requeued."""
        resubmit = signal.getsignal(signal.SIGUSR2)  # submitit's handler, before training installs its own
        place = find(os.environ, self.port, first_address)
        export(place)
        local = os.environ["SUBMITIT_EXECUTOR"] == "local"
        keeps = not local and place.rank == 0  # the record of the job on SLURM
        if local:
            leave_when_told()
        forget_earlier()
        run = run_folder(self.stage.runs, self.stage.name)
        with ExitStack() as around:
            if local and place.rank == 0:
                around.enter_context(alone(run))
            if keeps:
                starts.begin(run / "logs", self._folder().name, reached(self.stage))
            if self.beside and keeps:
                around.enter_context(watching(run, self.beside, _say))
            # ten seconds of imports that a login node must not pay
            from bigdiff.train.preflight import Check
            from bigdiff.train.setup import train_stage

            gpu, limits = self.cluster.gpus_per_node > 0, self.cluster.preflight
            outcome = train_stage(self.stage, Check(gpu=gpu, limits=limits, endured=() if local else self._endured()))
            if outcome.finished and place.rank == 0:
                _say(compared(run))
            if keeps:
                stopped = f"told to stop ({outcome.why}), saved at step {outcome.step}"
                starts.end(run / "logs", "finished" if outcome.finished else stopped)
            if not outcome.finished and not local:
                requeue(resubmit, place.rank)  # leaves by an exception, so that what is beside keeps it waiting no more
        return Ended(step=outcome.step, samples_seen=outcome.samples_seen, finished=outcome.finished)

    def _folder(self) -> Path:
        return Path(submitit.JobEnvironment().paths.folder)

    def _endured(self) -> tuple[str, ...]:
        return endured(self._folder().parent, self._folder().name)

    def checkpoint(self) -> Any:  # noqa: ANN401 (submitit is untyped here)
        """What submitit runs after a requeue: the same job, which goes on from its last checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


def queued(stage: str, cluster: str, beside: Sequence[str], port: int) -> TrainJob:
    """The job whose settings these are by their names, as YAML.

    Raises:
        UsageError: for settings that this version does not have, or takes for unusable.
    """
    of = restore(Cluster, cluster, QUEUED)
    tasks = tuple(restore(Task, text, QUEUED) for text in beside[1:])
    what = Beside(recipe=beside[0], tasks=tasks, cluster=of) if beside else None
    return TrainJob(stage=check(restore(Stage, stage, QUEUED)), cluster=of, beside=what, port=port)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def compared(run: Path) -> str:
    """Lines about the planner's forecast beside what a finished run measured; nothing of it ends the job."""
    from bigdiff.plan import comparison  # torch, which a job has imported by now

    try:
        return comparison.text(comparison.recorded(run))
    except Exception as error:  # noqa: BLE001 (the run is done and saved, whatever is wrong with a forecast)
        return f"no forecast was compared: {error or type(error).__name__}"


def leave_when_told() -> None:
    """Until training listens for itself, a stop ends this process: there is nothing to save yet.

    submitit has set these signals to be ignored or to restart the job, neither of which fits a local run.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in STOPS:
        signal.signal(number, leave)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run in `folder`, so that a second job on this machine does not write the same checkpoints.

    The kernel drops the lock when the process ends in whatever way.

    Raises:
        RunError: when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "running.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise RunError(
                f"{folder} is being trained by process {lock.read().strip()}: wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def requeue(resubmit: Callable[[int, FrameType | None], Any] | int | None, rank: int) -> None:
    """Give the job back to SLURM, to be started again; does not return normally.

    Raises:
        RunError: when the job was cancelled (a requeue would bring it back), or the requeue did not happen.
        LastingError: when it was requeued as often as it may be.
    """
    if rank > 0:
        time.sleep(REQUEUE_SECONDS)
        raise RunError(f"the job was not requeued within {REQUEUE_SECONDS} s; its checkpoint is saved")
    now = state(os.environ["SLURM_JOB_ID"])
    if now != "RUNNING":
        raise RunError(
            f"stopped and saved; the job is {now}, so it is not requeued from here: unless SLURM starts it again, "
            f"submit it again to continue"
        )
    if not callable(resubmit):
        raise RunError("submitit's signal handler is missing, so the job cannot requeue itself: submit it again")
    try:
        resubmit(signal.SIGUSR2, None)  # dumps `checkpoint()`, calls `scontrol requeue`, exits
    except UncompletedJobError as error:
        raise LastingError(
            "stopped and saved; the cluster's max_requeues time-outs and preemptions are used up: submit it again to "
            "continue"
        ) from error
    raise RunError("submitit did not requeue the job; its checkpoint is saved: submit it again")
