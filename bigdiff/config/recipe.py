"""Stages in order, each starting from the weights of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, find, load, load_stage
from bigdiff.config.schema import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A file under configs/recipes: what the stages make together."""

    name: str
    about: str = ""  # for a person
    stages: tuple[str, ...]  # names of stage files, in the order of training


def load_recipe(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> tuple[Recipe, tuple[Stage, ...]]:
    """The recipe `name` (a file under configs/recipes, or a path to one) and its stages; `overrides` go to every stage.

    Raises:
        UsageError: for an unknown recipe or stage, or stages that cannot be handed over in this order.
    """
    recipe = load(Recipe, [find(name, configs / "recipes", "recipe")])
    return recipe, check_order(recipe, tuple(load_stage(stage, overrides, configs) for stage in recipe.stages))


def check_order(recipe: Recipe, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return `stages` when each starts from random weights or from those of the one before it.

    Raises:
        UsageError: naming the stage that does not.
    """
    if not stages:
        raise UsageError(f"recipe {recipe.name} has no stages")
    names = [stage.name for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise UsageError(f"recipe {recipe.name}: stage {twice} occurs more than once")
    for number, stage in enumerate(stages):
        before = stages[number - 1] if number else None
        allowed = ("", before.name) if before else ("",)
        if stage.init_from not in allowed:
            wanted = f'"" or {before.name}, the stage before it' if before else '"": it is the first'
            raise UsageError(
                f"recipe {recipe.name}: stage {stage.name} has init_from={stage.init_from}, it must be {wanted}"
            )
        if before and stage.init_from and stage.runs != before.runs:
            raise UsageError(
                f"recipe {recipe.name}: stage {stage.name} starts from {before.name}, but runs={stage.runs} is not "
                f"that stage's {before.runs}"
            )
        if before and stage.init_from and stage.model.unet != before.model.unet:
            raise UsageError(
                f"recipe {recipe.name}: stage {stage.name} starts from {before.name}, but their model.unet differ"
            )
    return stages
