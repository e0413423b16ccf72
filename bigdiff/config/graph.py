"""A recipe's stages and tasks as one graph: what waits for what, in an order to start them in, and what runs beside."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bigdiff.config.errors import UsageError
from bigdiff.config.precedence import ordered
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
    names = [*(task.name for task in recipe.tasks), *(stage.name for stage in stages)]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise UsageError(f"recipe {recipe.name}: {twice} occurs more than once among its tasks and stages")
    once = [task for task in recipe.tasks if not task.every]
    named = [*(task.name for task in once), *(stage.name for stage in stages)]
    for task in recipe.tasks:
        _check(recipe.name, task, named)
    tasks = [_filled(task, {"runs": stages[0].runs, "cluster": cluster}) for task in once]
    made = {place(task.makes): task.name for task in tasks}
    nodes = [Node(name=task.name, work=task, after=task.after) for task in tasks]
    for node in chain(stages):
        assert isinstance(node.work, Stage)
        sets = dict.fromkeys(place(one.location) for one in sources(node.work.data))
        nodes.append(replace(node, after=(*node.after, *(made[one] for one in sets if one in made))))
    order, circle = ordered({node.name: node.after for node in nodes})
    if circle:
        raise UsageError(f"recipe {recipe.name}: {', '.join(circle)} wait for each other")
    by_name = {node.name: node for node in nodes}
    return tuple(by_name[name] for name in order)


def beside(recipe: Recipe, stages: Sequence[Stage], cluster: str) -> tuple[Task, ...]:
    """The tasks at checkpoints of a recipe, each after the one stage whose checkpoints it takes; see `at`.

    Raises:
        UsageError: for one that is not after a stage alone, makes the same at all steps, or whose checkpoints are not
            kept until its job begins.
    """
    by_name = {stage.name: stage for stage in stages}
    found = [task for task in recipe.tasks if task.every]
    for task in found:
        _check_beside(recipe.name, task, by_name)
    return tuple(_filled(task, {"runs": stages[0].runs, "cluster": cluster}) for task in found)


def at(task: Task, step: int) -> Task:
    """A task at checkpoints as the task at one of them."""
    return replace(_filled(task, {"step": str(step)}), name=f"{task.name}-{step}", after=(), every=0)


def _filled(task: Task, values: Mapping[str, str]) -> Task:
    """With {name} of `values` replaced; any other braces stay."""

    def words(text: str) -> str:
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text

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
    if task.every < 0:
        raise UsageError(f"{about}: every={task.every} must not be negative")
    if task.gpus < 0:
        raise UsageError(f"{about}: gpus={task.gpus} must not be negative")


def _check_beside(recipe: str, task: Task, stages: Mapping[str, Stage]) -> None:
    """Refuse a task at checkpoints that would not find what it needs, or could not be told from the next."""
    about = f"recipe {recipe}: task {task.name}, with every={task.every},"
    if len(task.after) != 1 or task.after[0] not in stages:
        raise UsageError(f"{about} needs `after` to be one stage, whose checkpoints it takes")
    if "{step}" not in task.makes or not any("{step}" in word for word in task.run):
        raise UsageError(f"{about} needs {{step}} in `run` and in `makes`, or it would be the same at all steps")
    stage = stages[task.after[0]]
    kept = stage.checkpoint.keep_every
    if not kept or task.every % kept:
        raise UsageError(
            f"{about} needs checkpoints that are still there when its job begins: let it be a multiple of stage "
            f"{stage.name}'s checkpoint.keep_every={kept}, and that not 0"
        )
    if task.every > stage.steps:
        raise UsageError(f"{about} is never reached in the {stage.steps} steps of stage {stage.name}")


def place(location: str) -> str:
    """A set's location, the same for different spellings of a folder."""
    return location.rstrip("/") if "://" in location else os.path.normpath(location)
