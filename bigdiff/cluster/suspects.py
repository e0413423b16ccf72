"""On which node a crash began, and how a job that waits is kept off it, where the cluster has others."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bigdiff.cluster.clients import hostnames, refused, scontrol, shown

START: Final = "== start "  # a line of the batch script's log, before anything else of a start
_READ: Final = 2**20  # bytes of the log's end
_ENDED: Final = re.compile(r"^srun: error: (\S+): tasks? [\d,-]+: (.+)", re.MULTILINE)  # srun's words, as they end
_UNTOLD: Final = ("Exited with", "Terminated")  # an exit may be for another's sake, and TERM is what srun itself sends


def first_killed(log: str) -> str:
    """The node of the first process that ended since the newest start in `log`, where a signal did it; else ""."""
    found = _ENDED.search(log.rpartition(START)[2])
    return found.group(1) if found and not found.group(2).startswith(_UNTOLD) else ""


def end_of(log: Path) -> str:
    """The last part of a log, "" without one."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _READ))
        return stream.read().decode(errors="replace")


def nodes_of(tasks: Iterable[int], nodes: Sequence[str], per_node: int) -> tuple[str, ...]:
    """The nodes where processes of these numbers ran, by SLURM's order of blocks."""
    return tuple(sorted({nodes[task // per_node] for task in tasks if task // per_node < len(nodes)}))


def job_nodes() -> tuple[str, ...]:
    """The nodes of the job that this process belongs to.

    Raises:
        RunError: when SLURM's `scontrol` does not answer.
    """
    return hostnames(os.environ["SLURM_JOB_NODELIST"])


def spared(script: Path, without: Sequence[str]) -> bool:
    """Whether SLURM could start the job of `script` without these nodes; nodes that others use now count."""
    return not refused(script, f"--exclude={','.join(without)}")


def excluded(job: str) -> tuple[str, ...]:
    """The nodes that a job may not get, one by one.

    Raises:
        RunError: as `job_nodes`.
    """
    listed = shown(job, "ExcNodeList")
    return hostnames(listed) if listed not in ("", "(null)") else ()


def exclude(job: str, nodes: Sequence[str]) -> None:
    """Keep a job that waits off these nodes, and off those that it may not get already.

    Raises:
        RunError: as `job_nodes`, or when SLURM refuses.
    """
    scontrol("update", f"JobId={job}", f"ExcNodeList={','.join(nodes)}", silent=True)
