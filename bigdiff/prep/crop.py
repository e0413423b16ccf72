"""Pixels of a stored image as the autoencoder takes them: shorter side resized, centre cropped."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

RESIZE: Final = "bicubic shorter side"
CROP: Final = "center"
FORMATS: Final = ("JPEG", "PNG", "WEBP")

Pixels = npt.NDArray[np.uint8]


def decode(content: bytes, resolution: int) -> tuple[Pixels, bool]:
    """The image in `content` as uint8 [resolution, resolution, 3], and whether it had to be enlarged for that.

    Raises:
        OSError, ValueError: when `content` is not a JPEG, PNG or WebP image.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return np.asarray(square(image.convert("RGB"), resolution)), min(image.size) < resolution


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Resize the shorter side to `resolution` (bicubic, antialiased) and crop the centre.

    The same numbers as torchvision's `Resize` and `CenterCrop`, which SD's training code called.
    """
    width, height = image.size
    short = min(width, height)
    if short != resolution:
        width, height = resolution * width // short, resolution * height // short
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if width == height:
        return image
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return image.crop((left, top, left + resolution, top + resolution))
