"""How a recipe's stages and tasks, or one stage, stand: job, step, images/s, time left, last saved step, restarts."""

import argparse
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from bigdiff.cluster import status
from bigdiff.cluster.chosen import chosen, takes
from bigdiff.config.errors import door


def main() -> None:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    takes(parser)
    wanted = chosen(parser.parse_intermixed_args(), cluster="")
    nodes = [*wanted.nodes, *wanted.due()]
    found = [status.find(wanted.folder(node)) for node in nodes]
    queued = status.queue([one.job for one in found if one.on_slurm])
    rows = [status.stand(node.work, one, queued.get(one.job)) for node, one in zip(nodes, found, strict=True)]
    table = Table("name", "state", "job", "step", "images/s", "left", "saved", "again", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(
            row.name,
            row.state,
            row.job,
            f"{row.step:,} of {row.steps:,}" if row.steps else "",
            "" if row.images_per_second is None else f"{row.images_per_second:,.1f}",
            "" if row.seconds_left is None else tqdm.format_interval(row.seconds_left),
            f"{row.checkpoint:,}" if row.checkpoint else "",
            str(row.restarts or ""),
        )
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    again = [f"{row.name} began again last: {escape(row.again)}" for row in rows if row.again]
    crashed = [f"{row.name} crashed last: {escape(row.why)}" for row in rows if row.why]
    out.print(table, *again, *crashed, sep="\n")


if __name__ == "__main__":
    door(main)
