"""Write a checkpoint of a run as others read it, loaded back and compared.

In diffusers' layout a folder, of a pipeline or an autoencoder; in the original one a file, as the original code and the
common interfaces read it, with its configuration (.yaml) and its card (.md) beside it.
"""

import argparse
from pathlib import Path

from bigdiff.config.averages import FORMS
from bigdiff.config.errors import UsageError, door


def main() -> None:
    """Parse, export, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as runs/quickstart-64px")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder, or FILE.safetensors with --layout original; an earlier export is replaced",
    )
    parser.add_argument("--layout", choices=("diffusers", "original"), default="diffusers", help="default: diffusers")
    parser.add_argument("--weights", default="ema", help=f"{FORMS} (default: ema)")
    parser.add_argument("--step", type=int, default=0, help="of the checkpoint (default: the newest undamaged one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32"
    )
    parser.add_argument("--dry-run", action="store_true", help="say which checkpoint would be exported and stop")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise UsageError(f"--run {arguments.run} is not a folder; train the stage first")
    if arguments.step < 0:
        raise UsageError(f"--step {arguments.step} must not be negative")

    from bigdiff.export import diffusers as pipelines  # torch and diffusers: seconds
    from bigdiff.train import release

    if arguments.dry_run:
        source = pipelines.read(arguments.run, arguments.weights, arguments.step)
        what = f"{source.checkpoint} ({source.which}, {arguments.dtype}, {arguments.layout} layout)"
        print(f"would export {what} to {arguments.output}")
        return
    released = release.export(
        arguments.run, arguments.output, arguments.weights, arguments.dtype, arguments.layout, arguments.step
    )
    note = f"; {released.note}" if released.note else ""
    what = f"{released.checkpoint} ({released.weights}, {arguments.dtype})"
    print(f"{arguments.output}: {what}, loaded back and compared{note}")


if __name__ == "__main__":
    door(main)
