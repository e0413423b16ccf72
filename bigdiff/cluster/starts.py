"""Each start of a run on SLURM and what ended it: why a job began again, crash or not."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bigdiff.cluster.crash import Crash, crashes
from bigdiff.runtime.records import read, write

RECORD: Final = "starts.json"  # in the run's folder of logs
# SLURM's own words for it are gone once the job has begun again
UNTOLD: Final = "ended by SLURM before it could save: a lost node, or a requeue, a preemption or a time limit at once"

CRASHED: Final = "crashed: "  # before what crashes.json has of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One start of a job; an entry of starts.json."""

    time: float  # seconds since 1970
    job: str  # its folder among the run's logs
    nodes: str  # in SLURM's notation
    step: int  # that it goes on from, 0 before the first checkpoint
    ended: str = ""  # how, for a person; "" while it runs
    seconds: float = 0.0  # that it lasted, where it could tell


def starts(logs: Path) -> list[Start]:
    """All starts of a run, the oldest first, from its folder of logs.

    Raises:
        RunError: when the file is not what this module writes.
    """
    return read(logs / RECORD, lambda one: Start(**one), "starts")


def begin(logs: Path, job: str, step: int) -> None:
    """Add a start to the record, and to the one before what is known of its end by now.

    Raises:
        RunError: as `starts`, and bigdiff.cluster.crash.crashes.
    """
    earlier, now = starts(logs), time.time()
    if earlier and not earlier[-1].ended:
        earlier[-1] = replace(earlier[-1], ended=told(earlier[-1], crashes(logs)))
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    write(logs / RECORD, [*earlier, Start(time=round(now, 3), job=job, nodes=nodes, step=step)])


def end(logs: Path, how: str) -> None:
    """Say how the newest start ended.

    Raises:
        RunError: as `starts`.
    """
    *earlier, last = starts(logs)
    write(logs / RECORD, [*earlier, replace(last, ended=how, seconds=round(time.time() - last.time, 3))])


def told(start: Start, found: Sequence[Crash]) -> str:
    """What ended a start that could not say it itself."""
    crash = next((one for one in found if one.job == start.job and one.time >= start.time), None)
    return f"{CRASHED}{crash.why}" if crash else UNTOLD
