"""One page about a run, to send to somebody: how it learns, how fast, what it saw, what happened, how good it is."""

import argparse
from pathlib import Path

from bigdiff.config.errors import door


def main() -> None:
    """Parse, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="docs/report.md says what is on it.")
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as runs/quickstart-64px")
    parser.add_argument("--output", type=Path, help="file (default: report.html in the run's folder); replaced")
    arguments = parser.parse_args()

    from bigdiff.report import page  # OmegaConf and Pillow: half a second

    print(page.write(arguments.run, arguments.output))


if __name__ == "__main__":
    door(main)
