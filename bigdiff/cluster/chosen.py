"""The stage or the recipe that a command names: its options, and what they mean as a chain of jobs."""

import argparse

from bigdiff.cluster.chain import Chain
from bigdiff.config.graph import beside, chain, graph
from bigdiff.config.load import CARD, load_stage
from bigdiff.config.recipe import load_recipe


def takes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is meant."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", help="a file of configs/stages, or a path to one")
    what.add_argument("--recipe", help="a file of configs/recipes, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the stage(s), such as seed=1")


def chosen(arguments: argparse.Namespace, cluster: str) -> Chain:
    """What the options of `takes` mean, to be run on `cluster`.

    Raises:
        UsageError: for an unknown stage or recipe, or one that does not fit together.
    """
    if arguments.recipe:
        recipe, planned = load_recipe(arguments.recipe, arguments.overrides, profile=arguments.profile)
        stages = [one.stage for one in planned]
        nodes, tasks = graph(recipe, stages, cluster), beside(recipe, stages, cluster)
        return Chain(recipe=recipe.name, nodes=nodes, runs=stages[0].runs, beside=tasks)
    stage = load_stage(arguments.stage, arguments.overrides, profile=arguments.profile)
    return Chain(recipe="", nodes=chain([stage]), runs=stage.runs)
