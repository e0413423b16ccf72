"""A file's bytes to what is stored of it: decoded once, refused with a reason, the same bytes each time.

Contract of the stored picture: 8-bit RGB; the orientation tag applied; 16-bit samples scaled, not clipped; white below
what is transparent; the centre square, or the centre in the bucket of the nearest aspect, resized as for latents and
training (bigdiff.data.pixels). Colour profiles are not applied, as in the sets that Stable Diffusion was trained on.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Pack
from bigdiff.data.decoding import TOO_LARGE, Pixels, Undecodable
from bigdiff.data.decoding import decode as pixels_of
from bigdiff.data.pixels import Frame, framed
from bigdiff.prep.buckets import Shape, nearest, shapes
from bigdiff.prep.phash import phash

# Pillow's other readers are older, less used on the web, or start other programs (EPS).
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
STORED_PIXELS: Final = 1 << 28  # most of a picture that is stored already, which was bounded then


class Rejected(Exception):
    """Why a picture is not stored: a cause out of a small set, fit for counting."""

    def __init__(self, cause: str, picture: Image.Image | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.picture = picture  # to show it, where it could be decoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A picture as it is stored."""

    content: bytes
    width: int
    height: int
    original_width: int  # of the file, after its orientation was applied
    original_height: int
    phash: int  # of the stored pixels, before they were encoded


def store(content: bytes, pack: Pack) -> Stored:
    """Decode, check, orient, crop, resize and encode one picture.

    Raises:
        Rejected: when it is no picture, damaged, cut short, too large, or too small.
    """
    pixels = _decoded(content, pack.max_pixels)
    height, width, _ = pixels.shape
    if pack.min_side is not None and min(width, height) < pack.min_side:
        raise Rejected("smaller than pack.min_side", Image.fromarray(pixels))
    stored = _fitted(pixels, shapes(pack))
    return Stored(
        content=encode(stored, pack),
        width=stored.width,
        height=stored.height,
        original_width=width,
        original_height=height,
        phash=phash(stored),
    )


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The first frame as upright 8-bit RGB.

    Raises:
        Rejected: as in `store`.
    """
    return Image.fromarray(_decoded(content, max_pixels))


def _decoded(content: bytes, max_pixels: int) -> Pixels:
    try:
        return pixels_of(content, max_pixels, FORMATS)
    except Undecodable as error:
        raise Rejected("more than pack.max_pixels" if error.cause == TOO_LARGE else error.cause) from error


def fitted(picture: Image.Image, allowed: Sequence[Shape]) -> Image.Image:
    """The centre of an RGB picture, in the one of the `allowed` shapes whose aspect is nearest to its own.

    Raises:
        Rejected: when a long and narrow picture would have to be enlarged beyond reason.
    """
    return _fitted(np.array(picture), allowed)


def _fitted(pixels: Pixels, allowed: Sequence[Shape]) -> Image.Image:
    width, height = nearest(allowed, pixels.shape[1], pixels.shape[0])
    try:
        return Image.fromarray(framed(pixels, Frame(width=width, height=height)))
    except Undecodable as error:
        raise Rejected(error.cause, Image.fromarray(pixels)) from error


def encode(picture: Image.Image, pack: Pack) -> bytes:
    """The stored bytes: no metadata, fixed settings, full colour resolution."""
    buffer = io.BytesIO()
    if pack.format == "png":
        picture.save(buffer, "PNG", compress_level=6)
    else:
        picture.save(buffer, "JPEG", quality=pack.jpeg_quality or DEFAULT_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
