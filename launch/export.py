"""Write a run's newest checkpoint as a diffusers pipeline folder, loaded back and compared before it is there."""

import argparse
from pathlib import Path

from bigdiff.config.errors import UsageError, door


def main() -> None:
    """Parse, export, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as runs/quickstart-64px")
    parser.add_argument("--output", type=Path, required=True, help="pipeline folder; an earlier export is replaced")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: ema")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32"
    )
    parser.add_argument("--dry-run", action="store_true", help="say which checkpoint would be exported and stop")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise UsageError(f"--run {arguments.run} is not a folder; train the stage first")

    from bigdiff.export import diffusers as pipelines  # torch and diffusers: seconds

    if arguments.dry_run:
        source = pipelines.read(arguments.run, arguments.weights)
        print(f"would export {source.checkpoint} ({arguments.weights}, {arguments.dtype}) to {arguments.output}")
        return
    checkpoint = pipelines.export(arguments.run, arguments.output, arguments.weights, arguments.dtype)
    print(f"{arguments.output}: {checkpoint} ({arguments.weights}, {arguments.dtype}), loaded back and compared")


if __name__ == "__main__":
    door(main)
