"""After a crash on SLURM: start the job again, unless the same would come of it. The batch script runs this at its end.

A process that dies ends the others (srun --kill-on-bad-exit), and with them SLURM would end the job. What ended them is
read from what submitit leaves of each process. Unusable input and a LastingError end the job. Anything else (killed,
out of memory, a lost peer, a server that is away) requeues it, but a few times only without a new checkpoint between.
"""

import argparse
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from submitit.core.utils import JobPaths, pickle_load

from bigdiff.checkpoint.layout import latest, step_of
from bigdiff.cluster.follow import sentence
from bigdiff.cluster.rendezvous import scontrol, state
from bigdiff.config.errors import LastingError, RunError, UsageError, door
from bigdiff.runtime.files import write_json

RECORD: Final = "crashes.json"  # in the run's folder of logs
LEAVE_SECONDS: Final = 60  # in which SLURM ends the batch script of a requeued job
_LETTERS: Final = 500  # of a foreign error's last line

Kind = Literal["input", "lasting", "passing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """An end of a job's processes that nobody asked for; one entry of crashes.json."""

    time: float  # seconds since 1970
    job: str  # its folder among the run's logs, a name that no other job of the run has
    nodes: str  # in SLURM's notation
    status: int  # srun's exit status: the largest of all processes, 128 + the signal of one that was killed
    step: int  # of the newest checkpoint, 0 before the first
    kind: Kind  # unusable input, or it comes again until somebody mends it, or it may not come again
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a job that crashed, and the sentence that says so."""

    again: bool
    sentence: str


def decide(crash: Crash, earlier: Sequence[Crash], limit: int) -> Verdict:
    """Whether the job starts again after `crash`: at most `limit` crashes in a row without a new checkpoint.

    `earlier` are the run's crashes before, of this job and of others, which do not count. That a checkpoint is new is
    told by its step, which must be above that of all earlier crashes.
    """
    if crash.kind != "passing":
        return Verdict(again=False, sentence=f"{crash.why}; this would come again, so the job is not started again")
    row = 1 + sum(one.job == crash.job and one.step >= crash.step for one in earlier)
    counted = f"{crash.why}; crash {row} of at most {limit} in a row without a checkpoint after step {crash.step}"
    if row >= limit:
        return Verdict(again=False, sentence=f"{counted} (max_crashes), so the job is not started again")
    return Verdict(again=True, sentence=f"{counted}; the job starts again from step {crash.step}")


def cause(traces: Sequence[str], status: int) -> tuple[Kind, str]:
    """What kind of failure ended the processes, and a sentence for it.

    `traces` are the tracebacks that they left, the oldest first: none of those that were killed, or ended for another
    rank's sake. One that lasts outweighs the others.
    """
    errors = [(sentence(trace), trace) for trace in traces]
    for spoken, _ in errors:
        if isinstance(spoken, UsageError):
            return "input", str(spoken)
        if isinstance(spoken, LastingError):
            return "lasting", str(spoken)
    if errors:
        spoken, trace = errors[0]
        return "passing", str(spoken or trace.strip().rpartition("\n")[2])[:_LETTERS]
    number = status - 128
    if number in signal.valid_signals():
        return "passing", f"a process was ended by signal {number} ({signal.strsignal(number)})"
    return "passing", f"a process ended with status {status}, and the log says why"


def traces(folder: Path, job: str) -> list[str]:
    """The tracebacks that the job's processes left in `folder`, the oldest first, and leaves none to the next start."""
    found = []
    for file in folder.glob(f"{job}_*_result.pkl"):
        try:
            outcome, value = pickle_load(file)  # written by our own process, in our own run folder
        except (EOFError, pickle.UnpicklingError):  # by one that lost its disk
            continue
        if outcome == "error":
            found.append((file.stat().st_mtime, str(value)))
        file.unlink()
    return [trace for _, trace in sorted(found)]


def crashes(logs: Path) -> list[Crash]:
    """All crashes of a run, the oldest first, from its folder of logs.

    Raises:
        RunError: when the file is not what this module writes.
    """
    file = logs / RECORD
    if not file.exists():
        return []
    try:
        return [Crash(**one) for one in json.loads(file.read_text())]
    except (ValueError, TypeError) as error:
        raise RunError(f"{file} is not a list of crashes ({error}): remove it") from error


def main() -> None:
    """Look why the job's processes ended, write it down, and requeue the job or leave its end as it is.

    Raises:
        UsageError: outside of a job, or with the sentence of unusable input.
        RunError: for any other end of the job.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the job's folder under the run's logs; %%j stands for the job's id")
    parser.add_argument("--status", type=int, required=True, help="srun's exit status")
    parser.add_argument("--limit", type=int, required=True, help="crashes in a row without a new checkpoint")
    arguments = parser.parse_args()
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        raise UsageError("SLURM_JOB_ID is not set: the batch script of launch/slurm.py runs this at its end")
    now = state(job)
    if now != "RUNNING":  # cancelled, out of time, preempted, or requeued by the run itself: SLURM goes on with it
        raise RunError(f"the job's processes ended with status {arguments.status}, and the job is {now}")
    verdict, crash = judge(JobPaths(arguments.folder, job_id=job).folder, job, arguments.status, arguments.limit)
    if not verdict.again:
        raise (UsageError if crash.kind == "input" else RunError)(verdict.sentence)
    sys.stdout.write(f"crashed: {verdict.sentence}\n")
    sys.stdout.flush()
    scontrol("requeue", job, silent=True)
    time.sleep(LEAVE_SECONDS)  # SLURM ends this process; an exit before that would be the job's own
    raise RunError(f"SLURM has not ended the batch script of the requeued job {job} within {LEAVE_SECONDS} s")


def judge(folder: Path, job: str, status: int, limit: int) -> tuple[Verdict, Crash]:
    """The verdict on a crash of the job with logs in `folder`, once the crash stands in the run's record."""
    kind, why = cause(traces(folder, job), status)
    newest = latest(folder.parents[1])
    crash = Crash(
        time=round(time.time(), 3),
        job=folder.name,
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        status=status,
        step=step_of(newest) if newest else 0,
        kind=kind,
        why=why,
    )
    earlier, file = crashes(folder.parent), folder.parent / RECORD
    try:  # on the disk before the job starts again: a count that could be lost bounds nothing
        write_json(file, [asdict(one) for one in [*earlier, crash]])
    except OSError as error:
        raise RunError(
            f"{why}; {file} cannot be written ({error.strerror}), so the job is not started again"
        ) from error
    return decide(crash, earlier, limit), crash


if __name__ == "__main__":
    door(main)
