"""Every knob of a cluster, once, typed, with its unit and default: the files under configs/cluster."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What a job looks at before it trains: devices, rates, exchange, shared folder, versions, data, clocks."""

    slow: float = 0.7  # share of the processes' median rate below which a node is left out; 0: none is
    clock_seconds: float = 2.0  # by which a node's clock may differ before the log says so


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where a stage runs: this machine's devices or a SLURM partition."""

    name: str
    kind: Literal["local", "slurm"] = "slurm"
    nodes: int = 1
    processes_per_node: int = 8  # one per GPU
    gpus_per_node: int = 8  # 0: CPU and gloo
    cpus_per_process: int = 8  # 0 on a local machine: an equal share of its cores
    memory_gb: int = 0  # per node; 0 leaves it to the cluster
    time_minutes: int = 1440
    signal_seconds: int = 300  # warning before the time limit; the run saves and requeues on it
    max_requeues: int = 100  # time-outs and preemptions after which submitit stops requeueing
    max_crashes: int = 3  # in a row, without a new checkpoint, after which the job is not started again
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""  # nodes to avoid, in SLURM's notation
    setup: tuple[str, ...] = ()  # shell lines before the job: module load, source, export
    environment: tuple[str, ...] = ()  # KEY=VALUE for every process, for example NCCL_IB_HCA=mlx5
    srun_args: tuple[str, ...] = ()  # further words of srun, for example --container-image=IMAGE
    preflight: Preflight = field(default_factory=Preflight)
