"""What a partition has, whatever its nodes do at the moment: can a job of this size ever start there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bigdiff.cluster.clients import sinfo
from bigdiff.config.cluster import Cluster

_GPUS: Final = re.compile(r"\bgpu(?::[^:,()]+)?:(\d+)")  # of "gpu:a100:8(S:0-1),nic:2"
_TIME: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")  # of "1-00:00:00", "30:00"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A node."""

    name: str
    cpus: int
    memory_gb: float  # 1e9 bytes
    gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A partition, by what is configured."""

    name: str
    machines: tuple[Machine, ...]
    minutes: int | None  # time limit of a job; None: there is none


def ask(name: str) -> Partition | None:
    """The partition `name`, or the cluster's default one for ""; None where there is none.

    Raises:
        RunError: when SLURM does not answer.
    """
    return parsed(sinfo("--all", "--Node", "--format=%P|%N|%c|%m|%G|%l"), name)


def parsed(lines: Iterable[str], name: str) -> Partition | None:
    """The partition from the lines of `ask`: partition (with * the default), node, CPUs, MiB, GRES, time limit."""
    rows = [line.strip().split("|") for line in lines]
    own = [row for row in rows if (row[0].rstrip("*") == name if name else row[0].endswith("*"))]
    if not own:
        return None
    machines = tuple(
        Machine(
            name=node,
            cpus=int(cpus),
            memory_gb=int(memory) * 2**20 / 1e9,
            gpus=sum(int(count) for count in _GPUS.findall(gres)),
        )
        for _, node, cpus, memory, gres, _ in own
    )
    return Partition(name=own[0][0].rstrip("*"), machines=machines, minutes=minutes(own[0][5]))


def minutes(limit: str) -> int | None:
    """Of SLURM's notation of a time; None for one without end."""
    found = _TIME.fullmatch(limit)
    if found is None:
        return None
    days, hours, rest, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + rest


def lacking(cluster: Cluster, nodes: int, processes: int, gpus: int, found: Partition) -> str:
    """Why a job of so many nodes, with so many processes and GPUs on each, can never start; "" where it can."""
    if found.minutes is not None and cluster.time_minutes > found.minutes:
        return f"time_minutes={cluster.time_minutes} is above the limit of partition {found.name}, {found.minutes}"
    cpus = processes * cluster.cpus_per_process
    fit = [
        one for one in found.machines if one.cpus >= cpus and one.gpus >= gpus and one.memory_gb >= cluster.memory_gb
    ]
    if len(fit) >= nodes:
        return ""
    wanted = [f"{cpus} CPUs"] + [f"{gpus} GPUs"] * bool(gpus) + [f"{cluster.memory_gb} GB"] * bool(cluster.memory_gb)
    return (
        f"{nodes} nodes of {', '.join(wanted)} are asked for, of the {len(found.machines)} nodes of partition "
        f"{found.name} {len(fit)} have that"
    )
