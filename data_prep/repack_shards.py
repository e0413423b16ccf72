"""One image set out of another, without fetching or encoding: other thresholds, no duplicates, takedowns carried out.

    python data_prep/repack_shards.py --images SET --output NEW pack.takedown=takedown.txt

The same command again continues a job that was stopped or killed, and ends in the same bytes.
"""

import argparse
from pathlib import Path

from bigdiff.config.errors import door
from bigdiff.config.load import dump
from bigdiff.config.repack import load_repack
from bigdiff.runtime.terminal import say


def main() -> None:
    """Parse, run, print where the set lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, help="folder of a finished image set")
    parser.add_argument("--output", required=True, type=Path, help="folder of the new set")
    parser.add_argument("--config", help="a file under configs/repack, by path or by name")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (default: local)")
    parser.add_argument("--cluster", help="with slurm: a file under configs/cluster, by name or path")
    parser.add_argument("--machines", type=int, help="with slurm: parts of each phase's array (default: its nodes)")
    parser.add_argument("--dry-run", action="store_true", help="print the settings; write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as pack.takedown=list.txt")
    given = parser.parse_intermixed_args()
    settings = load_repack(given.config, given.overrides)
    if given.dry_run:
        print(dump(settings))
        return

    from bigdiff.cluster.array import spread
    from bigdiff.prep.repack import repack  # duckdb, pyarrow, Pillow: a second

    with spread(given.executor, given.cluster, given.machines, settings.pack.processes, given.output) as workers:
        made = repack(settings, given.images, given.output, workers, say)
    state = "was finished already" if made.was_finished else "is finished"
    print(f"{given.output} {state}: {made.manifest.samples:,} samples in {len(made.manifest.shards)} shards")
    print(f"report: {made.report}")


if __name__ == "__main__":
    door(main)
