"""The stages that make a model: a graph in which each stage starts from random weights or from another's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CARD, CONFIGS, find, load, load_stage
from bigdiff.config.precedence import ordered
from bigdiff.config.schema import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is done before, between or after the stages, by one process of its own: a command of this project.

    Words may hold {runs}, the stages' folder of runs, and {cluster}, the name that the stages are submitted with; those
    of a task at checkpoints hold {step}.
    """

    name: str
    run: tuple[str, ...]  # words behind `python`: a door's path in the repository, or -m and a module
    makes: str  # the shard set's folder, or the file, that is there once it is done
    after: tuple[str, ...] = ()  # tasks and stages that must be done; a stage waits by itself for what makes its sets
    gpus: int = 0
    every: int = 0  # steps: not once, but at each such checkpoint of the stage that it is after, beside what trains on


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A file under configs/recipes: what the stages make together."""

    name: str
    about: str = ""  # for a person
    stages: tuple[str, ...]  # names of stage files, each after the one it starts from or not: they are sorted
    facts: str = ""  # folder under configs/fidelity: what is published about these stages
    tasks: list[Task] = field(default_factory=list)  # what makes their data, and what judges them


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A stage of a recipe, and the file it came from: profiles and arguments give stages other names."""

    file: str  # "512px", of configs/stages/512px.yaml
    stage: Stage


def load_recipe(
    name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, profile: str = CARD
) -> tuple[Recipe, tuple[Planned, ...]]:
    """The recipe `name` (a file under configs/recipes, or a path to one) and its stages in an order to train them in.

    `overrides` go to every stage; `profile` as for `load_stage`.

    Raises:
        UsageError: for an unknown recipe or stage, or stages that cannot be handed over.
    """
    recipe = load(Recipe, [find(name, configs / "recipes", "recipe")])
    planned = [
        Planned(file=Path(one).stem, stage=load_stage(one, overrides, configs, profile)) for one in recipe.stages
    ]
    return recipe, in_order(recipe.name, planned)


def in_order(recipe: str, planned: Sequence[Planned]) -> tuple[Planned, ...]:
    """`planned`, each after the stage it starts from, and otherwise in the order given.

    Raises:
        UsageError: naming the stage that cannot be handed over, or the stages that wait for each other.
    """
    _check_names(recipe, [one.stage for one in planned])
    by_name = {one.stage.name: one for one in planned}
    for one in planned:
        if one.stage.init_from:
            _check_pair(recipe, one.stage, by_name[one.stage.init_from].stage)
    order, circle = ordered({one.stage.name: {one.stage.init_from} - {""} for one in planned})
    if circle:
        raise UsageError(
            f"recipe {recipe}: {', '.join(circle)} start from each other: let one of them start from random weights"
        )
    return tuple(by_name[name] for name in order)


def _check_names(recipe: str, stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    if not names:
        raise UsageError(f"recipe {recipe} has no stages")
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise UsageError(f"recipe {recipe}: stage {twice} occurs more than once")
    for stage in stages:
        if stage.init_from not in {"", *names}:
            raise UsageError(
                f"recipe {recipe}: stage {stage.name} has init_from={stage.init_from}, which is not among its stages "
                f"({', '.join(names)})"
            )


def _check_pair(recipe: str, stage: Stage, before: Stage) -> None:
    if stage.runs != before.runs:
        raise UsageError(
            f"recipe {recipe}: stage {stage.name} starts from {before.name}, but runs={stage.runs} is not that stage's "
            f"{before.runs}"
        )
    if stage.model.unet != before.model.unet:
        raise UsageError(f"recipe {recipe}: stage {stage.name} starts from {before.name}, but their model.unet differ")
    if stage.init_step > before.steps:
        raise UsageError(
            f"recipe {recipe}: stage {stage.name} starts from step {stage.init_step} of {before.name}, which has "
            f"{before.steps}"
        )
