"""After a crash on SLURM: start the job again, unless the same would come of it. The batch script runs this at its end.

A process that dies ends the others (srun --kill-on-bad-exit), and with them SLURM would end the job. What ended them is
read from what submitit leaves of each process. Unusable input and a LastingError end the job. Anything else (killed,
out of memory, a lost peer, a server that is away) requeues it, but a few times only without a new checkpoint between.
A node that is at fault is left out, where the cluster has another for it.
"""

import argparse
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from submitit.core.utils import JobPaths, pickle_load

from bigdiff.checkpoint.layout import latest, step_of
from bigdiff.cluster import suspects
from bigdiff.cluster.clients import scontrol, state
from bigdiff.cluster.crash import RECORD, Crash, Kind, avoided, crashes
from bigdiff.cluster.follow import sentence
from bigdiff.config.errors import LastingError, NodeError, RunError, UsageError, door
from bigdiff.runtime.records import write

LEAVE_SECONDS: Final = 60  # in which SLURM ends the batch script of a requeued job
_KINDS: Final[Mapping[Kind, type[Exception]]] = {"input": UsageError, "lasting": LastingError, "node": NodeError}
_LETTERS: Final = 500  # of a foreign error's last line


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The traceback that one process left."""

    task: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A job: its folder of logs, its id, and its nodes in the order of its processes."""

    folder: Path
    job: str
    nodes: tuple[str, ...]
    per_node: int  # processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a job that crashed, and the sentence that says so."""

    again: bool
    sentence: str
    without: tuple[str, ...] = ()  # nodes that it should not get again


def decide(crash: Crash, earlier: Sequence[Crash], limit: int) -> Verdict:
    """Whether the job starts again after `crash`: at most `limit` crashes in a row without a new checkpoint.

    `earlier` are the run's crashes before, of this job and of others, which do not count. That a checkpoint is new is
    told by its step, which must be above that of all earlier crashes.
    """
    if crash.kind in ("input", "lasting"):
        return Verdict(again=False, sentence=f"{crash.why}; this would come again, so the job is not started again")
    row = 1 + sum(one.job == crash.job and one.step >= crash.step for one in earlier)
    counted = f"{crash.why}; crash {row} of at most {limit} in a row without a checkpoint after step {crash.step}"
    if row >= limit:
        return Verdict(again=False, sentence=f"{counted} (max_crashes), so the job is not started again")
    sentence = f"{counted}; the job starts again from step {crash.step}"
    return Verdict(again=True, sentence=sentence, without=avoided(crash, earlier))


def cause(traces: Sequence[Trace], status: int) -> tuple[Kind, str]:
    """What kind of failure ended the processes, and a sentence for it.

    `traces` are the tracebacks that they left, the oldest first: none of those that were killed, or ended for another
    rank's sake. One that lasts outweighs the others.
    """
    errors = [(sentence(trace.text), trace.text) for trace in traces]
    for kind, error in _KINDS.items():
        for spoken, _ in errors:
            if isinstance(spoken, error):
                return kind, str(spoken)
    if errors:
        spoken, text = errors[0]
        return "passing", str(spoken or text.strip().rpartition("\n")[2])[:_LETTERS]
    number = status - 128
    if number in signal.valid_signals():
        return "passing", f"a process was ended by signal {number} ({signal.strsignal(number)})"
    return "passing", f"a process ended with status {status}, and the log says why"


def blamed(kind: Kind, why: str, traces: Sequence[Trace], log: str, where: Where) -> tuple[str, ...]:
    """The nodes at which a crash began, where they are known: of a failed preflight, or the only one with trouble."""
    if kind == "node":
        return NodeError(why).nodes
    if kind != "passing":
        return ()
    if traces:
        found = suspects.nodes_of((trace.task for trace in traces), where.nodes, where.per_node)
    else:
        found = tuple(filter(None, [suspects.first_killed(log)]))
    return found if len(found) == 1 < len(where.nodes) else ()


def traces(folder: Path, job: str) -> list[Trace]:
    """The tracebacks that the job's processes left in `folder`, the oldest first, and leaves none to the next start."""
    found = []
    for file in folder.glob(f"{job}_*_result.pkl"):
        try:
            outcome, value = pickle_load(file)  # written by our own process, in our own run folder
        except (EOFError, pickle.UnpicklingError):  # by one that lost its disk
            continue
        if outcome == "error":
            found.append((file.stat().st_mtime, Trace(task=int(file.name.split("_")[1]), text=str(value))))
        file.unlink()
    return [trace for _, trace in sorted(found, key=lambda one: one[0])]


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
    where = Where(
        folder=JobPaths(arguments.folder, job_id=job).folder,
        job=job,
        nodes=suspects.job_nodes(),
        per_node=int(os.environ["SLURM_NTASKS_PER_NODE"]),
    )
    verdict, crash = judge(where, arguments.status, arguments.limit)
    if not verdict.again:
        raise (UsageError if crash.kind == "input" else RunError)(verdict.sentence)
    restart(where, verdict)


def judge(where: Where, status: int, limit: int) -> tuple[Verdict, Crash]:
    """The verdict on a crash of a job, once the crash stands in the run's record.

    Raises:
        RunError: when it cannot be written down.
    """
    logs = where.folder.parent
    found = traces(where.folder, where.job)
    kind, why = cause(found, status)
    newest = latest(logs.parent)
    crash = Crash(
        time=round(time.time(), 3),
        job=where.folder.name,
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        status=status,
        step=step_of(newest) if newest else 0,
        kind=kind,
        why=why,
        blamed=blamed(kind, why, found, suspects.end_of(where.folder / f"{where.job}_0_log.out"), where),
    )
    earlier = crashes(logs)
    try:  # on the disk before the job starts again: a count that could be lost bounds nothing
        write(logs / RECORD, [*earlier, crash])
    except OSError as error:
        raise RunError(
            f"{why}; {logs / RECORD} cannot be written ({error.strerror}), so the job is not started again"
        ) from error
    return decide(crash, earlier, limit), crash


def restart(where: Where, verdict: Verdict) -> None:
    """Requeue the job, without the nodes that the verdict names where there are others; does not return normally.

    Raises:
        RunError: when SLURM does not do it.
    """
    without = sorted({*verdict.without, *suspects.excluded(where.job)}) if verdict.without else []
    spared = not without or suspects.spared(where.folder / f"{where.job}_submission.sh", without)
    said = [f"crashed: {verdict.sentence}"]
    if without:
        them, others = ("them", "others") if len(verdict.without) > 1 else ("it", "other")
        how = f"without {them} from now on" if spared else f"with {them}, as SLURM has no {others} for it"
        said.append(f"blamed: {', '.join(verdict.without)}; the job starts {how}")
    sys.stdout.write("\n".join(said) + "\n")
    sys.stdout.flush()
    # SLURM sends TERM to all that is left of a requeued job; blocked, also in scontrol, it waits until we have done
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    scontrol("requeue", where.job, silent=True)
    if without and spared:
        suspects.exclude(where.job, without)  # SLURM takes this of a job that waits, not of one that runs
    if signal.sigtimedwait({signal.SIGTERM}, LEAVE_SECONDS) is None:  # an exit before that would be the job's own
        raise RunError(f"SLURM has not ended the batch script of the requeued job {where.job} in {LEAVE_SECONDS} s")
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    door(main)
