"""What this machine has for a local job, and the local cluster's settings fitted to it. Asks no torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass, replace

from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError

_SLURM_ONLY = (
    "setup",
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "memory_gb",
    "max_requeues",
    "max_crashes",
    "srun_args",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Devices that a local job may use."""

    cores: int
    gpus: tuple[int, ...] = ()  # numbers, as in CUDA_VISIBLE_DEVICES


def this() -> Machine:
    """The machine that this process runs on, seen through its CPU affinity and CUDA_VISIBLE_DEVICES."""
    return Machine(cores=len(os.sched_getaffinity(0)), gpus=_gpus())


def fit(cluster: Cluster, machine: Machine, processes: int = 0) -> Cluster:
    """`cluster` with the processes, GPUs and threads that a job on `machine` gets; `processes=0`: its own choice.

    One process per GPU where there are GPUs (at most `gpus_per_node`), else `processes_per_node` processes that share
    the cores equally, unless `cpus_per_process` fixes their number of threads.

    Raises:
        UsageError: for a cluster of another kind, settings that only SLURM heeds, or more processes than GPUs.
    """
    if cluster.kind != "local" or cluster.nodes != 1:
        raise UsageError(f"cluster {cluster.name} is not one local machine: kind must be local and nodes 1")
    default = Cluster(name=cluster.name)
    idle = next((key for key in _SLURM_ONLY if getattr(cluster, key) != getattr(default, key)), "")
    if idle:
        raise UsageError(f"cluster {cluster.name}: {idle} has no effect on a local machine: remove it")
    gpus = min(cluster.gpus_per_node, len(machine.gpus))
    count = processes or gpus or cluster.processes_per_node
    if count < 1:
        raise UsageError(f"{count} processes cannot train: give --processes 1 or more")
    if gpus and count > gpus:
        raise UsageError(
            f"{count} processes need {count} GPUs and this machine offers {gpus}: lower --processes, "
            f"or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )
    return replace(
        cluster,
        processes_per_node=count,
        gpus_per_node=count if gpus else 0,
        cpus_per_process=cluster.cpus_per_process or max(1, machine.cores // count),
    )


def _gpus() -> tuple[int, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(range(_driver_gpus()))
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not all(name.isdigit() for name in names):
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES={visible} names GPUs otherwise than by number: give numbers such as 0,1"
        )
    return tuple(int(name) for name in names)


def _driver_gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
