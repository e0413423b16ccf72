"""What a stage or a recipe will do, before anything runs: its order, time, memory and cost, its fidelity."""

import argparse
from pathlib import Path

from bigdiff.cluster.chosen import takes
from bigdiff.config.errors import UsageError, door
from bigdiff.config.facts import load_facts
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.config.recipe import load_recipe


def main() -> None:
    """Parse, load, compute, print."""
    epilog = "docs/planning.md says what is measured and what is modelled."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    takes(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--fidelity", action="store_true", help="each published fact beside this config's value (a recipe)"
    )
    how.add_argument("--device", help="time, memory, traffic and cost on these: a100-40, a100-80, h100, h200, b200")
    parser.add_argument("--probe", type=Path, help="the same from a measurement of launch/probe.py")
    parser.add_argument("--cluster", help="a file of configs/cluster (default: sd-v1-card)")
    parser.add_argument("--nodes", help="numbers of nodes, such as 1,8,64 (default: the cluster's)")
    parser.add_argument("--network", type=float, help="Gb/s between nodes for each rank (default: 400)")
    parser.add_argument("--price", type=float, help="of a device and hour")
    parser.add_argument("--samples", type=int, help="of each stage's set: its storage, and encoding it")
    parser.add_argument("--picture-kb", type=float, help="1e3 bytes of a stored picture, in the mean")
    arguments = parser.parse_intermixed_args()
    recipe, planned = None, ()
    if arguments.recipe:
        recipe, planned = load_recipe(arguments.recipe, arguments.overrides, profile=arguments.profile)
    stages = [one.stage for one in planned]
    if recipe is None:
        stages = [load_stage(arguments.stage, arguments.overrides, profile=arguments.profile)]
    cluster = load_cluster(arguments.cluster or "sd-v1-card")
    from bigdiff.plan import fidelity, forecast, outlook, table  # torch and diffusers: seconds

    out, asked = table.console(), forecast.asked(vars(arguments))
    if recipe is not None and arguments.fidelity:
        facts, departures = load_facts(recipe.facts)
        sections = fidelity.compare(planned, arguments.profile, facts, departures)
        table.show(out, table.report(recipe, arguments.profile, sections, facts, out))
    elif recipe is not None and asked is None:
        table.show(out, table.order(recipe, arguments.profile, planned, out))
    elif asked is None:
        raise UsageError("--stage is computed on something: add --device NAME, or --probe FILE from launch/probe.py")
    else:
        found = [forecast.forecast(stage, cluster, asked.nodes or (cluster.nodes,), asked.basis) for stage in stages]
        table.show(out, outlook.report(found, asked.basis, out))


if __name__ == "__main__":
    door(main)
