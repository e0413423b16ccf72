"""From a parquet file of image URLs to an image shard set: select, download, verify, pack, report.

    python data_prep/build_shards.py --config configs/data/laion-improved-aesthetics.yaml --input meta/ --output DIR

The same command again continues a job that was stopped or killed, and ends in the same bytes.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bigdiff.config.errors import UsageError, door
from bigdiff.config.load import dump
from bigdiff.config.prep import load_prep
from bigdiff.runtime.terminal import say


def main() -> None:
    """Parse, run, print where the set lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a file under configs/data, by path or by name")
    parser.add_argument("--input", required=True, type=Path, help="a parquet file with URLs and captions, or a folder")
    parser.add_argument("--output", required=True, help="the folder of the set")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (default: local)")
    parser.add_argument("--cluster", help="with slurm: a file under configs/cluster, by name or path")
    parser.add_argument("--machines", type=int, help="with slurm: parts of each phase's array (default: its nodes)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings and what the rules keep; write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as pack.resolution=256")
    given = parser.parse_intermixed_args()
    if "://" in given.output:
        raise UsageError(f"--output {given.output} is a URL: name a local folder and copy the finished set from there")
    prep = load_prep(given.config, given.overrides)

    from bigdiff.cluster.array import spread
    from bigdiff.prep.pipeline import build  # duckdb, pyarrow, Pillow: a second
    from bigdiff.prep.select import inputs, select

    if given.dry_run:
        selection = select(inputs(given.input), prep, None)
        table = Table("rule", "left", "only this rule")
        table.add_row("all rows", f"{selection.rows:,}", "")
        for count in selection.counts:
            table.add_row(count.rule, f"{count.left:,}", f"{count.only:,}")
        print(dump(prep))
        Console(markup=False).print(table, *selection.notes, sep="\n")
        return
    with spread(given.executor, given.cluster, given.machines, prep.pack.processes, Path(given.output)) as workers:
        made = build(prep, given.input, Path(given.output), workers, say)
    state = "was finished already" if made.was_finished else "is finished"
    print(f"{given.output} {state}: {made.manifest.samples:,} samples in {len(made.manifest.shards)} shards")
    print(f"report: {made.report}")


if __name__ == "__main__":
    door(main)
