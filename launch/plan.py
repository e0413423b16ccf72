"""What a recipe will do, before anything runs: its stages in order, and how far they are from what is published."""

import argparse

from bigdiff.config.errors import door
from bigdiff.config.facts import load_facts
from bigdiff.config.load import CARD
from bigdiff.config.recipe import load_recipe


def main() -> None:
    """Parse, load, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="a file of configs/recipes, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument(
        "--fidelity", action="store_true", help="each published fact, its source, this config's value and differences"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of all stages, such as optim.lr=2e-4"
    )
    arguments = parser.parse_intermixed_args()
    recipe, planned = load_recipe(arguments.recipe, arguments.overrides, profile=arguments.profile)
    facts, departures = load_facts(recipe.facts) if arguments.fidelity else (None, None)

    from bigdiff.plan import fidelity, table  # torch and diffusers: seconds

    console = table.console()
    if facts is None or departures is None:
        table.show(console, table.order(recipe, arguments.profile, planned, console))
        return
    sections = fidelity.compare(planned, arguments.profile, facts, departures)
    table.show(console, table.report(recipe, arguments.profile, sections, facts, console))


if __name__ == "__main__":
    door(main)
