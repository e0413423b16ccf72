"""Made-up embeddings and pictures, and what published weights make of them.

The numbers were computed once, in float64, from the files that the entries name.
"""

from typing import Final

import numpy as np
from PIL import Image

from bigdiff.prep.scorers.scorer import Floats

WIDTH: Final = 768  # of CLIP L/14's embeddings
# Directions of which LAION's NSFW head is in doubt: of nearly all others it gives 0 or 1, which any mistake does too
_SEEDS: Final = (35, 95, 285, 314, 451, 746)
# {kind: {sha256 of the weights' names, shapes and values: scores of `embeddings`}}
SCORES: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "aesthetic_v1": {  # sa_0_4_vit_l_14_linear.pth
        "239e29cda084622fa1ba3879132787c91c3c7afcaff6580900a25c9774c10dcb": (
            4.527092,
            2.949589,
            3.745873,
            3.342582,
            3.367538,
            2.834736,
        )
    },
    "aesthetic_v2": {  # sac+logos+ava1-l14-linearMSE.pth
        "a026066ffe7a8fb242c2532710d67b1f0f148654591d8171386be940ca513662": (
            5.942184,
            4.843774,
            5.953485,
            6.533335,
            4.368242,
            4.854376,
        )
    },
    "nsfw": {  # clip_autokeras_binary_nsfw, converted to npz
        "c03b7d183b143d0e9e27813014858378052e0a57863849c658c56c18bedd7047": (
            0.209983,
            0.501203,
            0.705464,
            0.394285,
            0.617933,
            0.821006,
        )
    },
}


def embeddings() -> Floats:
    """Six embeddings [6, 768] of unit norm, by integers alone, so that they are the same everywhere."""
    seed, place = np.array(_SEEDS, np.int64)[:, None], np.arange(1, WIDTH + 1, dtype=np.int64)[None]
    mixed = seed * 2654435761 + place * 40503 + seed * place * 69069 + place * place % (seed + 96) * 7919
    values = mixed % 65537 / 65537 - 0.5
    unit: Floats = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def pattern(width: int, height: int) -> Image.Image:
    """Stripes of two colours, a slow rise of grey, and colours that change ever faster to the right.

    The two colours are equally bright; with exchanged channels, or other weights of each, one is brighter. The rise is
    even at one scale and not at another.
    """
    row, place = np.mgrid[:height, :width].astype(np.int64)
    channels = [(row * (3 + each) + place * place // (37 + 11 * each)) % 256 for each in range(3)]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    pixels[:, : width // 2] = row[:, : width // 2, None] // 3 % 256
    stripes = place[:, : width // 4, None] // 16 % 2
    pixels[:, : width // 4] = np.where(stripes == 0, (100, 100, 200), (138, 100, 100))
    return Image.fromarray(pixels)
