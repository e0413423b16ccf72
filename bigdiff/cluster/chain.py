"""A graph of stages and tasks to jobs on SLURM, each waiting for the success of those before it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster import beside, partition, status, submit, task
from bigdiff.cluster.clients import refused, scancel
from bigdiff.cluster.partition import Partition
from bigdiff.cluster.ready import has_data, reached, startable
from bigdiff.cluster.submit import Job
from bigdiff.cluster.watcher import Beside, due
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError
from bigdiff.config.graph import Node, at, place
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage

# SLURM's words for what it does not have, and also for what is down for the moment
_NO_NODES: Final = "Requested node configuration is not available"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """What is submitted together: the nodes of a recipe's graph, or one stage."""

    recipe: str  # "" for a stage alone
    nodes: tuple[Node, ...]  # each after those that it waits for
    runs: str  # folder of the stages' runs
    beside: tuple[Task, ...] = ()  # tasks at checkpoints of these stages

    def folder(self, node: Node) -> Path:
        """Where a node's logs are: in a stage's run, or in a folder of the task."""
        if isinstance(node.work, Stage):
            return run_folder(node.work.runs, node.work.name)
        return task.folder(self.runs, self.recipe, node.work)

    def job(self, node: Node, cluster: Cluster) -> Job:
        """What is submitted for a node.

        Raises:
            UsageError: for a cluster that cannot work.
        """
        if isinstance(node.work, Stage):
            own = self._beside(node.name)
            what = Beside(recipe=self.recipe, tasks=own, cluster=cluster) if own else None
            return submit.of_stage(node.work, cluster, what)
        return submit.of_task(node.work, self.folder(node), cluster)

    def due(self) -> tuple[Node, ...]:
        """The tasks at those checkpoints that are there."""
        stages = [node.work for node in self.nodes if isinstance(node.work, Stage)]
        found = [due(run_folder(one.runs, one.name), self._beside(one.name)) for one in stages]
        return tuple(Node(name=task.name, work=task) for several in found for task in several)

    def _beside(self, stage: str) -> tuple[Task, ...]:
        return tuple(one for one in self.beside if stage in one.after)


def alone(name: str, words: tuple[str, ...], makes: Path, cluster: Cluster) -> Chain:
    """One command of this project on one node with all its GPUs, whose logs are beside what it `makes`.

    `name` is what the command is, and no part of any path but that of the logs.
    """
    folder = makes.parent
    work = Task(name=folder.name, run=words, makes=str(makes), gpus=cluster.gpus_per_node)
    return Chain(recipe=name, nodes=(Node(name=work.name, work=work),), runs=str(folder.parent))


def is_done(node: Node) -> bool:
    """Whether nothing is left to do."""
    return reached(node.work) >= node.work.steps if isinstance(node.work, Stage) else task.done(node.work)


def scripts(chain: Chain, cluster: Cluster) -> Iterator[tuple[Node, str]]:
    """Each node with its sbatch script, where <id of NAME> stands for the job id of one before it.

    Behind them the tasks at checkpoints, at the first.

    Raises:
        UsageError: for a cluster that cannot work.
    """
    for node in chain.nodes:
        yield node, submit.script(chain.job(node, cluster), cluster, [f"<id of {name}>" for name in node.after])
    for node in _first(chain.beside):
        yield node, submit.script(chain.job(node, cluster), cluster)


def submitted(chain: Chain, cluster: Cluster, jobs: Mapping[str, Job]) -> Iterator[str]:
    """Submit those `jobs` of `check` that are not done, each after the success of those it waits for; a line for each.

    A job that still waits or runs is left alone, and what comes after waits for it.

    Raises:
        UsageError, RunError: as submit.slurm; what was submitted before stays submitted.
    """
    numbers: dict[str, str] = {}
    new: set[str] = set()
    for node in chain.nodes:
        job = jobs[node.name]
        if is_done(node):
            yield f"{node.name} is finished: {_stand(node)}"
            continue
        number, state = status.waiting(job.folder)
        if number and state == "pending" and new & set(node.after):
            scancel([number])  # it waits for a job that is gone, and SLURM would end it for that
        elif number:
            numbers[node.name] = number
            anew = f"`scancel {number}` first to submit it anew"
            yield f"{node.name} is job {number} already, {state}, {_stand(node)}: {anew}"
            continue
        after = [numbers[name] for name in node.after if name in numbers]
        numbers[node.name] = submit.slurm(job, cluster, after)
        new.add(node.name)
        waits = f", after job {' and '.join(after)}" if after else ""
        yield f"{node.name} submitted as job {numbers[node.name]}, {_stand(node)}{waits}; logs in {job.folder / 'logs'}"
    for node in chain.due():  # the stage's own job may have submitted it, or not have been able to
        assert isinstance(node.work, Task)
        yield beside.submitted(node.work, chain.folder(node), cluster)


def check(chain: Chain, cluster: Cluster) -> dict[str, Job]:
    """The jobs of a chain by their nodes' names, once it is known that each can begin and that SLURM would take it.

    Raises:
        UsageError: naming a stage's data, or a run outside of the chain that it starts from, where it is not there; or
            in SLURM's words.
    """
    names = {node.name for node in chain.nodes}
    made = frozenset(place(node.work.makes) for node in chain.nodes if isinstance(node.work, Task))
    left = [node for node in chain.nodes if not is_done(node)]
    asked = {node.name: chain.job(node, cluster) for node in chain.nodes}
    for node in left:
        if isinstance(node.work, Stage) and node.work.init_from not in names:
            startable(node.work)
    submit.has_sbatch()
    for node in left:
        if isinstance(node.work, Stage):
            has_data(node.work, made)
    found = partition.ask(cluster.partition) if left else None
    wanted = [asked[node.name] for node in left] + [chain.job(node, cluster) for node in _first(chain.beside) if left]
    for job in wanted:
        why = _refused(job, cluster, found)
        if why:
            raise UsageError(f"SLURM would not run {job.about} as cluster {cluster.name} has it: {why}")
    return asked


def _first(beside: Sequence[Task]) -> list[Node]:
    """Tasks at checkpoints, at the first of theirs."""
    found = [at(task, task.every) for task in beside]
    return [Node(name=task.name, work=task) for task in found]


def _refused(job: Job, cluster: Cluster, found: Partition | None) -> str:
    """Why SLURM would not take a job, or never start it; "" for one that only waits, as for nodes that are down."""
    why = refused(submit.script(job, cluster))
    if why and _NO_NODES not in why:
        return why
    if found is None:
        return why
    return partition.lacking(cluster, job.size.nodes, job.size.processes_per_node, job.size.gpus_per_node, found)


def _stand(node: Node) -> str:
    if isinstance(node.work, Stage):
        return f"at step {reached(node.work):,} of {node.work.steps:,}"
    return f"{node.work.makes} is there" if is_done(node) else f"makes {node.work.makes}"
