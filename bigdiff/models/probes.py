"""Made-up pictures of which it is known what a true network sees in them."""

import numpy as np
from PIL import Image

from bigdiff.config.errors import UsageError


def disc(colour: tuple[int, int, int]) -> Image.Image:
    """A disc of `colour` in the middle of 256 x 256 white pixels."""
    row, place = np.mgrid[:256, :256]
    pixels = np.full((256, 256, 3), 255, np.uint8)
    pixels[(row - 128) ** 2 + (place - 128) ** 2 < 80**2] = colour
    return Image.fromarray(pixels)


def wings(side: int) -> Image.Image:
    """Twice as wide as high (2 x `side`): a red square in the middle, reaching a little out of it, green, and blue.

    Cut to its square it is red; squashed it shows all three; with exchanged channels the red is blue.
    """
    pixels = np.empty((2 * side, 4 * side, 3), np.uint8)
    pixels[:, : side - side // 8] = (0, 255, 0)
    pixels[:, side - side // 8 : 3 * side + side // 8] = (255, 0, 0)
    pixels[:, 3 * side + side // 8 :] = (0, 0, 255)
    return Image.fromarray(pixels)


def refused(who: str, what: str) -> UsageError:
    """What a failed self-test raises; `who` names the network in the user's words."""
    return UsageError(f"{who} does not give its golden values ({what}): refusing to score with it")
