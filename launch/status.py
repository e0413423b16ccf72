"""How the stages of a recipe, or one stage, stand: job, step, images/s, time left, last saved step, starts again."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster import status
from bigdiff.config.errors import door
from bigdiff.config.load import CARD, load_stage
from bigdiff.config.recipe import load_recipe


def main() -> None:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", help="a file of configs/stages, or a path to one")
    what.add_argument("--recipe", help="a file of configs/recipes, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the stage(s), such as runs=DIR")
    arguments = parser.parse_intermixed_args()
    if arguments.recipe:
        planned = load_recipe(arguments.recipe, arguments.overrides, profile=arguments.profile)[1]
        stages = tuple(one.stage for one in planned)
    else:
        stages = (load_stage(arguments.stage, arguments.overrides, profile=arguments.profile),)
    found = [status.find(run_folder(stage.runs, stage.name)) for stage in stages]
    queued = status.queue([one.job for one in found if one.on_slurm])
    rows = [status.stand(stage, one, queued.get(one.job)) for stage, one in zip(stages, found, strict=True)]
    table = Table("stage", "state", "job", "step", "images/s", "left", "saved", "again", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(
            row.stage,
            row.state,
            row.job,
            f"{row.step:,} of {row.steps:,}",
            "" if row.images_per_second is None else f"{row.images_per_second:,.1f}",
            "" if row.seconds_left is None else tqdm.format_interval(row.seconds_left),
            f"{row.checkpoint:,}" if row.checkpoint else "",
            str(row.restarts or ""),
        )
    Console().print(table, *(f"{row.stage} crashed last: {escape(row.why)}" for row in rows if row.why), sep="\n")


if __name__ == "__main__":
    door(main)
