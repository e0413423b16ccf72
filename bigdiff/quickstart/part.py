"""One part of the quickstart by itself, in the folder where it is started: what a recipe's tasks run on a cluster."""

import argparse
import sys
from pathlib import Path

from bigdiff.config.errors import UsageError, door
from bigdiff.quickstart import job
from bigdiff.quickstart.dataset import PORT, Options
from bigdiff.quickstart.job import SCORES, SIZES, Clock, Places


def main() -> None:
    """Make the images, or judge a stage.

    Raises:
        UsageError: for a run that is not the quickstart's, or no scenes.
    """
    parser = argparse.ArgumentParser(prog="python -m bigdiff.quickstart.part", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    images = parts.add_parser("images", help="draw scenes, serve them to itself, download and pack them")
    images.add_argument("--scenes", type=int, default=Options().count, help="how many (default: %(default)s)")
    images.add_argument("--port", type=int, default=PORT, help="of this machine, for the server (default: %(default)s)")
    judge = parts.add_parser("judge", help=f"audit and export a run, judge its pictures, write {SCORES} beside it")
    judge.add_argument("--run", type=Path, required=True, help="folder of a run of quickstart-32px or quickstart-64px")
    judge.add_argument("--size", type=int, required=True, choices=SIZES, help="pixels of its stage")
    judge.add_argument("--step", type=int, default=0, help="of a checkpoint, while it trains (default: the end's)")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    clock = Clock()
    if arguments.part == "images":
        if arguments.scenes < 1:
            raise UsageError(f"--scenes {arguments.scenes}: there must be 1 or more")
        options = Options(count=arguments.scenes, port=arguments.port)
        job.images(Places(), options, clock, say)
        return
    places = Places(runs=arguments.run.parent)
    if places.run(arguments.size) != arguments.run:
        raise UsageError(f"--run {arguments.run} must end in quickstart-{arguments.size}px, as that stage's run does")
    if arguments.step < 0:
        raise UsageError(f"--step {arguments.step} must not be negative")
    scores = job.judge(places, arguments.size, clock, say, arguments.step)
    for attribute, row in scores.items():
        say(f"{attribute:12}right {row['accuracy']:.2f}, by chance {row['chance']:.2f}, oracle {row['oracle']:.2f}")


if __name__ == "__main__":
    door(main)
