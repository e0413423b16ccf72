"""Make an image shard set of a folder of pictures: `python data_prep/pack_folder.py --images DIR --output SET`."""

import argparse
from pathlib import Path

from bigdiff.config.errors import door


def main() -> None:
    """Parse, pack, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG, PNG or WebP files, at any depth")
    parser.add_argument("--output", type=Path, required=True, help="folder of the set, for a stage's data.images")
    parser.add_argument("--per-shard", type=int, default=1000, help="pictures in a tar (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they are packed (default: 0)")
    parser.add_argument("--dry-run", action="store_true", help="say how many pictures there are and stop")
    arguments = parser.parse_args()

    from bigdiff.prep import folder  # after the arguments are known to be good: pyarrow takes a second

    if arguments.dry_run:
        print(f"would pack {len(folder.find(arguments.images, arguments.output)):,} pictures into {arguments.output}")
        return
    made = folder.pack(arguments.images, arguments.output, arguments.per_shard, arguments.seed, print)
    print(f"{arguments.output}: {made.samples:,} pictures in {len(made.shards):,} tars")


if __name__ == "__main__":
    door(main)
