"""Tasks as a SLURM job array: what bigdiff.runtime.workers.Workers is on one machine.

The tasks are functions of their argument that do nothing when their outcome is there already, so an element that was
preempted, lost with its node, or cancelled is simply run again. The command that submits waits for the array; killed,
it leaves the array running, and its next start cancels that before it submits another.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from tqdm import tqdm

from bigdiff.cluster.clients import scancel, squeue
from bigdiff.cluster.follow import reported
from bigdiff.cluster.submit import common
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load_cluster
from bigdiff.runtime.files import write_json
from bigdiff.runtime.workers import Workers

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")
_TRIES: Final = 2  # of an element
_SUBMITTED: Final = "submitted.json"  # ids of the arrays that a killed command may have left


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds."""

    look: float = 1.0  # between two looks at the results
    ask: float = 30.0  # between two questions to SLURM
    grace: float = 60.0  # for the result of an element that SLURM no longer knows: network file systems are slow


@dataclass(frozen=True, slots=True)
class Share(Generic[Task, Outcome]):
    """What one element does; SLURM may preempt and requeue it."""

    function: Callable[[Task], Outcome]
    tasks: Sequence[Task]
    processes: int
    title: str

    def __call__(self) -> list[Outcome]:
        """The outcomes, in the tasks' order."""
        with Workers(self.processes) as workers:
            return list(workers.each(self.function, self.tasks, self.title))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again, after a time-out or a preemption."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(kw_only=True)
class Array:
    """Up to `machines` elements of `processes` processes each, at most `cluster.nodes` of them at a time."""

    cluster: Cluster
    folder: Path  # shared by all nodes: scripts, pickles, logs
    machines: int
    processes: int
    device: bool = False  # an element needs a GPU, where the cluster has them
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is written."""
        if shutil.which("sbatch") is None:
            raise UsageError("sbatch not found: run this on a login node of the cluster, or with --executor local")
        for name, value in (("elements of the array", self.machines), ("processes of an element", self.processes)):
            if value < 1:
                raise UsageError(f"{value} {name}: there must be 1 or more")

    def __enter__(self) -> "Array":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held between two calls of `each`."""

    def each(self, function: Callable[[Task], Outcome], tasks: Sequence[Task], title: str) -> Iterator[Outcome]:
        """`function` of each task, in the tasks' order, with a progress bar.

        Raises:
            RunError: when an element failed twice, naming its log.
        """
        if not tasks:
            return
        self._cancel_earlier()
        count = min(self.machines, len(tasks))
        shares = [Share(function, tasks[number::count], self.processes, title) for number in range(count)]
        outcomes: list[list[Outcome] | None] = [None] * count
        left = list(range(count))
        with tqdm(total=len(tasks), desc=title, unit="file") as bar:
            for attempt in range(_TRIES):
                failed: dict[int, str] = {}
                for number, outcome in self._run({number: shares[number] for number in left}, title):
                    if isinstance(outcome, str):
                        failed[number] = outcome
                    else:
                        outcomes[number] = outcome
                        bar.update(len(outcome))
                left = sorted(failed)
                if not left:
                    break
                if attempt + 1 == _TRIES:
                    raise RunError(f"{title}: {len(left)} of {count} parts failed twice; the first: {failed[left[0]]}")
        for number in range(len(tasks)):
            found = outcomes[number % count]
            assert found is not None
            yield found[number // count]

    def on_devices(self) -> "Array":
        """The same for work with networks: an element has one process, and a GPU where the cluster has them."""
        return replace(self, processes=1, device=True)

    def _run(self, shares: dict[int, Share[Any, Any]], title: str) -> Iterator[tuple[int, list[Any] | str]]:
        """Submit and wait: each number with its outcomes, or with what went wrong."""
        jobs = dict(zip(shares, self._submit(list(shares.values()), title), strict=True))
        known, missing, asked = set(jobs), dict.fromkeys(jobs, 0.0), 0.0
        try:
            while jobs:
                now = time.monotonic()
                if now - asked >= self.pace.ask:
                    running, asked = _running({job.job_id.partition("_")[0] for job in jobs.values()}), now
                    known = {number for number, job in jobs.items() if job.job_id in running}
                for number, job in list(jobs.items()):
                    found = reported(job, 0)
                    if found is not None:
                        yield number, _outcome(jobs.pop(number), found)
                    elif number in known:
                        missing[number] = 0.0
                    elif not missing[number]:
                        missing[number] = now
                    elif now - missing[number] > self.pace.grace:
                        yield number, f"the job or its node was lost (see {jobs.pop(number).paths.stdout})"
                time.sleep(self.pace.look if jobs else 0.0)
        finally:
            scancel({job.job_id for job in jobs.values()})
            (self.folder / _SUBMITTED).unlink(missing_ok=True)

    def _submit(self, shares: list[Share[Any, Any]], title: str) -> list[Any]:
        executor = submitit.SlurmExecutor(folder=self.folder / "%A", max_num_timeout=self.cluster.max_requeues)
        executor.update_parameters(**parameters(self.cluster, title, self.processes, self.device))
        try:
            jobs: list[Any] = executor.submit_array(shares)
        except (FailedJobError, FailedSubmissionError) as error:
            raise RunError(f"sbatch refused the array of {title}: {error}") from error
        write_json(self.folder / _SUBMITTED, sorted({job.job_id.partition("_")[0] for job in jobs}))
        return jobs

    def _cancel_earlier(self) -> None:
        """End the arrays that a killed command has left: two writers would do everything twice."""
        file = self.folder / _SUBMITTED
        if not file.exists():
            return
        earlier = set(json.loads(file.read_text()))
        scancel(earlier)
        while _running(earlier):
            time.sleep(self.pace.look)
        file.unlink()


def spread(executor: str, name: str | None, machines: int | None, processes: int, output: Path) -> Workers | Array:
    """Where the tasks of a preparation in `output` run: in `processes` processes here, or on the cluster `name`.

    Raises:
        UsageError: for options that do not belong together, an unknown cluster, or without SLURM.
    """
    if executor == "local":
        if name is not None or machines is not None:
            option = "--cluster" if name is not None else "--machines"
            raise UsageError(f"{option} has no effect with --executor local: remove it, or say --executor slurm")
        return Workers(processes)
    if name is None:
        raise UsageError("--executor slurm needs --cluster NAME, a file under configs/cluster")
    cluster = load_cluster(name)
    if cluster.kind != "slurm":
        raise UsageError(f"cluster {name} is of kind {cluster.kind}: --executor slurm needs one of kind slurm")
    folder = output / "_work" / "jobs"
    return Array(cluster=cluster, folder=folder, machines=machines or cluster.nodes, processes=processes)


def parameters(cluster: Cluster, title: str, processes: int, device: bool) -> dict[str, Any]:
    """submitit.SlurmExecutor's parameters for an array whose elements have `processes` processes, each on one node."""
    cores = max(processes, cluster.cpus_per_process)
    return {
        **common(cluster),
        "job_name": f"bigdiff-{title}".replace(" ", "-"),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cores,
        "gpus_per_node": 1 if device and cluster.gpus_per_node else None,
        "array_parallelism": cluster.nodes,
        "additional_parameters": {"requeue": True},
        "srun_args": [f"--cpus-per-task={cores}", *cluster.srun_args],  # not inherited since 22.05
    }


def _running(arrays: set[str]) -> set[str]:
    """The elements of `arrays` that wait or run, as `ARRAY_NUMBER` (or `ARRAY` alone for a job that is no array)."""
    return {line.strip() for line in squeue("--array", "--format=%i", f"--jobs={','.join(sorted(arrays))}")}


def _outcome(job: Any, found: tuple[str, Any]) -> list[Any] | str:  # noqa: ANN401 (submitit is untyped here)
    """The outcomes of an element's tasks, or what went wrong."""
    state, value = found
    if state == "success":
        outcomes: list[Any] = value
        return outcomes
    lines = [line for line in str(value).splitlines() if line.strip()]
    return f"{lines[-1].strip()} (see {job.paths.stdout})"
