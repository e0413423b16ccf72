"""What a person reads beside the progress bars."""

import sys

from tqdm import tqdm


def say(sentence: str) -> None:
    """Print a line to stderr, above the bars that are drawn there."""
    tqdm.write(sentence, file=sys.stderr)
