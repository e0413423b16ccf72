"""A stage and a cluster to a submitted job: on this machine, on SLURM, or as the text of the sbatch script alone."""

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster.job import TrainJob
from bigdiff.cluster.machine import Machine
from bigdiff.cluster.ready import startable
from bigdiff.cluster.rendezvous import free_port
from bigdiff.cluster.suspects import START
from bigdiff.cluster.task import TaskJob
from bigdiff.cluster.watcher import Beside
from bigdiff.config.cluster import Cluster
from bigdiff.config.engine_rules import passes
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage

# each start in the log, which all starts of a job share
START_LINE = f'echo "{START}${{SLURM_RESTART_COUNT:-0}} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date -Is)"'
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


class _SlurmExecutor(submitit.SlurmExecutor):  # type: ignore[misc] # submitit is untyped here
    """submitit's executor, also on a machine without Slurm, where it can still write the script."""

    @classmethod
    def affinity(cls) -> int:
        """Whether Slurm is here; `slurm` asks that itself, with a clearer sentence."""
        return 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a job asks for, of a cluster's nodes."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Work to be submitted: a callable that submitit pickles, its name in the queue, and the folder of its logs."""

    work: Callable[[], Any]
    about: str  # "stage 512px", for a person
    name: str
    folder: Path  # of the run, or of the task: above its logs
    size: Size


def of_stage(stage: Stage, cluster: Cluster, beside: Beside | None = None) -> Job:
    """The training of a stage, which submits what is `beside` it.

    Raises:
        UsageError: for a cluster that cannot work.
    """
    slurm_only(cluster)
    check(stage, cluster)
    return Job(
        work=TrainJob(stage=stage, cluster=cluster, beside=beside),
        about=f"stage {stage.name}",
        name=f"bigdiff-{stage.runs}-{stage.name}".replace("/", "-"),
        folder=run_folder(stage.runs, stage.name),
        size=Size(
            nodes=cluster.nodes, processes_per_node=cluster.processes_per_node, gpus_per_node=cluster.gpus_per_node
        ),
    )


def of_task(task: Task, folder: Path, cluster: Cluster) -> Job:
    """A task of a recipe, whose logs are in `folder`: one process on one node.

    Raises:
        UsageError: for a cluster that cannot work, or does not have what the task needs.
    """
    slurm_only(cluster)
    check_cluster(cluster)
    if task.gpus > cluster.gpus_per_node:
        raise UsageError(
            f"task {task.name} needs {task.gpus} GPUs on a node, cluster {cluster.name} has {cluster.gpus_per_node}"
        )
    return Job(
        work=TaskJob(task=task),
        about=f"task {task.name}",
        name=f"bigdiff-{folder}".replace("/", "-"),
        folder=folder,
        size=Size(nodes=1, processes_per_node=1, gpus_per_node=task.gpus),
    )


def slurm_only(cluster: Cluster) -> None:
    """Refuse a cluster that is this machine.

    Raises:
        UsageError: naming it.
    """
    if cluster.kind != "slurm":
        raise UsageError(f"cluster {cluster.name} is {cluster.kind}: use launch/local.py for this machine")


def parameters(job: Job, cluster: Cluster, after: Sequence[str] = ()) -> dict[str, Any]:
    """submitit.SlurmExecutor's parameters: what becomes the `#SBATCH` lines and the srun command.

    The job waits for the jobs `after` to succeed, and for any older job of its name to end ("singleton"), so that two
    submissions never write into one folder.
    """
    always = common(cluster)
    return {
        **always,
        # the script's last lines must be reached, whatever the cluster's own lines have set
        "setup": [START_LINE, *always["setup"], "set +e"],
        "job_name": job.name,
        "nodes": job.size.nodes,
        "ntasks_per_node": job.size.processes_per_node,
        "gpus_per_node": job.size.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_process,
        "dependency": ",".join([*([f"afterok:{':'.join(after)}"] if after else []), "singleton"]),
        "signal_delay_s": cluster.signal_seconds,
        # a job whose predecessor failed would wait for ever without kill-on-invalid-dep
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
        # a hung rank would hold all nodes until the time limit; since 22.05 srun does not inherit --cpus-per-task
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_process}", *cluster.srun_args],
    }


def common(cluster: Cluster) -> dict[str, Any]:
    """Those parameters of a job on `cluster` that do not depend on what it does."""
    return {
        "time": cluster.time_minutes,
        "mem": f"{cluster.memory_gb}GB" if cluster.memory_gb else None,
        "partition": cluster.partition or None,
        "account": cluster.account or None,
        "qos": cluster.qos or None,
        "constraint": cluster.constraint or None,
        "exclude": cluster.exclude or None,
        "setup": [*cluster.setup, *exports(environment(cluster))],
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is refused where SLURM tracks these keys
    }


def check(stage: Stage, cluster: Cluster) -> None:
    """Refuse a cluster whose values do not fit each other or the stage.

    Raises:
        UsageError: naming the key.
    """
    check_cluster(cluster)
    passes(stage, cluster.nodes * cluster.processes_per_node, gpu=cluster.gpus_per_node > 0)


def check_cluster(cluster: Cluster) -> None:
    """Refuse a cluster whose values do not fit each other.

    Raises:
        UsageError: naming the key.
    """
    for key in ("nodes", "processes_per_node", "cpus_per_process", "time_minutes", "signal_seconds", "max_crashes"):
        if getattr(cluster, key) < 1:
            raise UsageError(f"cluster {cluster.name}: {key}={getattr(cluster, key)} must be positive")
    if not 0 <= cluster.preflight.slow < 1:
        raise UsageError(f"cluster {cluster.name}: preflight.slow={cluster.preflight.slow} must be from 0 to below 1")
    if cluster.gpus_per_node not in (0, cluster.processes_per_node):
        raise UsageError(
            f"cluster {cluster.name}: processes_per_node={cluster.processes_per_node} must equal "
            f"gpus_per_node={cluster.gpus_per_node}, one process per GPU (gpus_per_node=0 trains on CPUs)"
        )
    if cluster.signal_seconds >= 60 * cluster.time_minutes:
        raise UsageError(
            f"cluster {cluster.name}: signal_seconds={cluster.signal_seconds} is not before the end of "
            f"time_minutes={cluster.time_minutes}"
        )


def environment(cluster: Cluster) -> dict[str, str]:
    """Variables of every process; the cluster's own come last and win.

    Raises:
        UsageError: for an entry of `environment` that is not KEY=VALUE.
    """
    variables = {}
    if not cluster.gpus_per_node:
        variables = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(cluster.cpus_per_process),
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on a busy machine make single steps ten times slower
            "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),  # where the set-up built DeepSpeed's op
        }
    for entry in cluster.environment:
        if not _VARIABLE.match(entry):
            raise UsageError(f"cluster {cluster.name}: environment entry {entry!r} is not of the form KEY=VALUE")
        key, _, value = entry.partition("=")
        variables[key] = value
    return variables


def exports(variables: dict[str, str]) -> list[str]:
    """Shell lines that set `variables`, and the interpreter's programs (ninja) in front of PATH."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    return [f'export PATH={shlex.quote(str(Path(sys.prefix) / "bin"))}:"$PATH"', *lines]


def crashed(folder: Path, limit: int) -> list[str]:
    """Shell lines behind srun: the script's status is 0 after a success, else bigdiff.cluster.again has its say."""
    words = [sys.executable, "-m", "bigdiff.cluster.again", str(folder), f"--limit={limit}"]
    return ["status=$?", 'if [ "$status" -ne 0 ]; then', f'  {shlex.join(words)} --status="$status"', "fi", ""]


def script(job: Job, cluster: Cluster, after: Sequence[str] = ()) -> str:
    """The sbatch script that `slurm` would submit, letter for letter but for the time in its log folder's name."""
    executor = _slurm_executor(job, cluster, after)
    # submitit offers the text only as a private method: the version is pinned and a test reads the lines
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def slurm(job: Job, cluster: Cluster, after: Sequence[str] = ()) -> str:
    """Submit to SLURM, after the success of the jobs `after`; returns the new job's id.

    Raises:
        UsageError: without sbatch here.
        RunError: when sbatch refuses the script, with its own words.
    """
    executor = _slurm_executor(job, cluster, after)
    has_sbatch()
    try:
        return str(executor.submit(job.work).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise RunError(f"sbatch refused {job.about}: {error}") from error


def has_sbatch() -> None:
    """Refuse to submit without SLURM.

    Raises:
        UsageError: when this machine has no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "sbatch not found: run this on a login node of the cluster, or add --dry-run to see the script"
        )


def command(stage: Stage, cluster: Cluster) -> str:
    """What `local` would start, as a line for a person.

    Raises:
        UsageError: for a cluster that cannot work.
    """
    check(stage, cluster)
    folder = _logs(run_folder(stage.runs, stage.name))
    variables = [f"{key}={shlex.quote(value)}" for key, value in environment(cluster).items()]
    device = f"{cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else "the CPU"
    words = [*variables, shlex.quote(sys.executable), "-u -m submitit.core._submit", shlex.quote(str(folder))]
    return f"{cluster.processes_per_node} processes on {device}, each: {' '.join(words)}"


def local(stage: Stage, cluster: Cluster, machine: Machine) -> Any:  # noqa: ANN401 (submitit is untyped here)
    """Start the stage on `machine` with the cluster that machine.fit made for it; returns submitit's job.

    Raises:
        UsageError: for a cluster that cannot work, or a stage that starts from what is not there.
    """
    check(stage, cluster)
    startable(stage)
    job = TrainJob(stage=stage, cluster=cluster, port=free_port())
    return start(job, run_folder(stage.runs, stage.name), cluster, machine)


def start(job: Callable[[], Any], run: Path, cluster: Cluster, machine: Machine) -> Any:  # noqa: ANN401 (submitit)
    """Start `job` in the cluster's number of processes on this machine, with logs under `run`/logs.

    The processes ignore the terminal's Ctrl-C, which would end them in the middle of a step: `follow` passes it on as
    a request to save and stop.
    """
    executor = submitit.LocalExecutor(_logs(run))
    executor.update_parameters(
        timeout_min=cluster.time_minutes,
        tasks_per_node=cluster.processes_per_node,
        gpus_per_node=cluster.gpus_per_node,
        visible_gpus=machine.gpus[: cluster.gpus_per_node],
        signal_delay_s=cluster.signal_seconds,
        stderr_to_stdout=True,
    )
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja, for DeepSpeed's op
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # children inherit that it is ignored
    try:
        with environment_variables(**{"PATH": path, **environment(cluster)}):
            return executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, before)


def _slurm_executor(job: Job, cluster: Cluster, after: Sequence[str]) -> _SlurmExecutor:
    folder = _logs(job.folder)
    executor = _SlurmExecutor(folder, max_num_timeout=cluster.max_requeues)
    executor.update_parameters(**parameters(job, cluster, after), teardown=crashed(folder, cluster.max_crashes))
    return executor


def _logs(run: Path) -> Path:
    # The time keeps submissions apart: a job id or process id that comes again (after a reboot, on a rebuilt cluster)
    # would find the job and the results of the earlier one.
    return run.absolute() / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}-%j"
