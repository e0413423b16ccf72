"""A recipe's stages and tasks as one graph: what waits for what, in an order to start them in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bigdiff.config.errors import UsageError
from bigdiff.config.recipe import Recipe, Task
from bigdiff.config.schema import Stage, sources


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A stage or a task, and the names of those that must be done before it."""

    name: str
    work: Stage | Task
    after: tuple[str, ...] = ()


def chain(stages: Sequence[Stage]) -> tuple[Node, ...]:
    """Stages alone, each after the one that it starts from, if that is among them; their order stays."""
    names = {stage.name for stage in stages}
    return tuple(Node(name=stage.name, work=stage, after=tuple({stage.init_from} & names)) for stage in stages)


def graph(recipe: Recipe, stages: Sequence[Stage], cluster: str) -> tuple[Node, ...]:
    """The tasks and `stages` (in an order to train them in) of a recipe, each behind those that it waits for.

    Raises:
        UsageError: for names that occur twice or are unknown, tasks without a command or an outcome, and circles.
    """
    tasks = [_filled(task, stages[0].runs, cluster) for task in recipe.tasks]
    named = [*(task.name for task in tasks), *(stage.name for stage in stages)]
    twice = next((name for name in named if named.count(name) > 1), "")
    if twice:
        raise UsageError(f"recipe {recipe.name}: {twice} occurs more than once among its tasks and stages")
    for task in tasks:
        _check(recipe.name, task, named)
    made = {place(task.makes): task.name for task in tasks}
    nodes = [Node(name=task.name, work=task, after=task.after) for task in tasks]
    for node in chain(stages):
        assert isinstance(node.work, Stage)
        sets = dict.fromkeys(place(one.location) for one in sources(node.work.data))
        nodes.append(replace(node, after=(*node.after, *(made[one] for one in sets if one in made))))
    return _sorted(recipe.name, nodes)


def _sorted(recipe: str, nodes: Sequence[Node]) -> tuple[Node, ...]:
    ordered: dict[str, Node] = {}
    while len(ordered) < len(nodes):
        ready = next((one for one in nodes if one.name not in ordered and set(one.after) <= set(ordered)), None)
        if ready is None:
            circle = ", ".join(one.name for one in nodes if one.name not in ordered)
            raise UsageError(f"recipe {recipe}: {circle} wait for each other")
        ordered[ready.name] = ready
    return tuple(ordered.values())


def _filled(task: Task, runs: str, cluster: str) -> Task:
    def words(text: str) -> str:
        return text.replace("{runs}", runs).replace("{cluster}", cluster)

    return replace(task, run=tuple(map(words, task.run)), makes=words(task.makes))


def _check(recipe: str, task: Task, names: Sequence[str]) -> None:
    """Refuse a task that cannot be run or told from its neighbours."""
    about = f"recipe {recipe}: task {task.name}"
    if not task.name or "/" in task.name or task.name.startswith("."):
        raise UsageError(f"{about}: a name becomes a folder's, so it must not be empty, hold / or begin with a dot")
    if not task.run or not task.makes:
        raise UsageError(f"{about} needs `run`, the words behind python, and `makes`, what is there when it is done")
    unknown = next((one for one in task.after if one not in names), "")
    if unknown:
        raise UsageError(f"{about} is after {unknown}, which is none of {', '.join(names)}")
    if task.gpus < 0:
        raise UsageError(f"{about}: gpus={task.gpus} must not be negative")


def place(location: str) -> str:
    """A set's location, the same for different spellings of a folder."""
    return location.rstrip("/") if "://" in location else os.path.normpath(location)
