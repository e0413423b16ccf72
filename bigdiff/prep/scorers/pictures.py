"""Scores of a picture without a network, of its grey version at 256 pixels, whatever its resolution was."""

from typing import Final

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.scorer import Batch, refused

Grey = np.typing.NDArray[np.uint8]
SIDE: Final = 256  # pixels of the shorter side
_VERSION: Final = 1
_EVEN: Final = 1  # levels: what rounding does to a constant


def grey(picture: Image.Image) -> Grey:
    """[H, W], the shorter side 256 pixels: 0.299 R + 0.587 G + 0.114 B, then averaged over areas.

    A smaller picture is enlarged, and is as soft as that makes it.
    """
    pixels = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2GRAY)
    height, width = pixels.shape
    scale = SIDE / min(height, width)
    size = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
    smaller = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=smaller), np.uint8)


class Sharpness:
    """Variance of the Laplacian: little of blurred and of empty pictures, much of noise and fine edges."""

    name = "sharpness"
    arrow = pa.float64()
    fingerprint = f"sharpness {_VERSION}"

    def score(self, batch: Batch) -> list[float]:
        """Of each picture."""
        return [float(cv2.Laplacian(grey(picture), cv2.CV_16S).var(dtype=np.float64)) for picture in batch.pictures]

    def self_test(self) -> None:
        """A made-up picture has its golden value.

        Raises:
            UsageError: when it has not.
        """
        _compare(self.name, self.score(_probe()), _SHARPNESS, 0.01)


class Flatness:
    """Share of the pixels whose 3 x 3 neighbourhood is even to one level: blank backgrounds, clip art, plain text."""

    name = "flatness"
    arrow = pa.float64()
    fingerprint = f"flatness {_VERSION}"

    def score(self, batch: Batch) -> list[float]:
        """Of each picture."""
        return [_even(grey(picture)) for picture in batch.pictures]

    def self_test(self) -> None:
        """A made-up picture has its golden value.

        Raises:
            UsageError: when it has not.
        """
        _compare(self.name, self.score(_probe()), _FLATNESS, 0.01)


_SHARPNESS: Final = (2740.175, 419.118)
_FLATNESS: Final = (0.426812, 0.476725)


def _probe() -> Batch:
    return Batch([golden.pattern(640, 480), golden.pattern(200, 300)], ["", ""])


def _compare(name: str, scores: list[float], right: tuple[float, ...], tolerance: float) -> None:
    """Within a share of the value: releases of OpenCV may round areas differently."""
    for number, (score, value) in enumerate(zip(scores, right, strict=True)):
        if not abs(score - value) <= tolerance * value:
            raise refused(name, f"probe {number} scores {score:.5f} in place of {value:.5f}")


def _even(pixels: Grey) -> float:
    window = np.ones((3, 3), np.uint8)
    spread = cv2.subtract(cv2.dilate(pixels, window), cv2.erode(pixels, window))
    return float((spread <= _EVEN).mean(dtype=np.float64))
