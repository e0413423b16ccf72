"""The crashes of a run: what each was, where they are written down, and which nodes they speak against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bigdiff.runtime.records import read

RECORD: Final = "crashes.json"  # in the run's folder of logs

Kind = Literal["input", "lasting", "node", "passing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """An end of a job's processes that nobody asked for; one entry of crashes.json."""

    time: float  # seconds since 1970
    job: str  # its folder among the run's logs, a name that no other job of the run has
    nodes: str  # in SLURM's notation
    status: int  # srun's exit status: the largest of all processes, 128 + the signal of one that was killed
    step: int  # of the newest checkpoint, 0 before the first
    kind: Kind  # unusable input; it comes again until somebody mends it; it is a node's; it may not come again
    why: str
    blamed: tuple[str, ...] = ()  # nodes where it began, where that is known


def crashes(logs: Path) -> list[Crash]:
    """All crashes of a run, the oldest first, from its folder of logs.

    Raises:
        RunError: when the file is not what this module writes.
    """
    return read(logs / RECORD, lambda one: Crash(**{**one, "blamed": tuple(one.get("blamed", ()))}), "crashes")


def avoided(crash: Crash, earlier: Sequence[Crash]) -> tuple[str, ...]:
    """Nodes that the job should not get again after `crash`.

    What a node cannot do, as the preflight finds out, is enough. That a process died there is not: any program may, so
    it takes a second time in the same job.
    """
    if crash.kind == "node":
        return crash.blamed
    before = {node for one in earlier if one.job == crash.job for node in one.blamed}
    return tuple(node for node in crash.blamed if node in before) if crash.kind == "passing" else ()


def endured(logs: Path, job: str) -> tuple[str, ...]:
    """Nodes that failed a preflight of `job` (its folder's name) before: there is no other for one that is back."""
    return tuple(
        sorted({node for one in crashes(logs) if one.job == job and one.kind == "node" for node in one.blamed})
    )
