"""A file's bytes to what is stored of it: decoded once, refused with a reason, the same bytes each time.

Contract of the stored picture: 8-bit RGB; the orientation tag applied; 16-bit samples scaled, not clipped; white below
what is transparent; the centre square, the centre in the bucket of the nearest aspect, or all of it with the shorter
side at the resolution, resized as for latents and training (bigdiff.data.pixels). Colour profiles are not applied, as
in the sets that Stable Diffusion was trained on.
"""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Pack
from bigdiff.data.decoding import MAX_PIXELS, TOO_LARGE, Pixels, Undecodable
from bigdiff.data.decoding import decode as pixels_of
from bigdiff.data.pixels import Frame, cover, covering, framed
from bigdiff.prep.buckets import Fit, Shape, fit, nearest
from bigdiff.prep.phash import phash

# Pillow's other readers are older, less used on the web, or start other programs (EPS).
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
STORED_PIXELS: Final = 1 << 28  # most of a picture that is stored already, which was bounded then
LONGEST: Final = 65_500  # pixels of a side that libjpeg writes; of PNGs, too, so that a set is the same in both formats


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
    """Decode, check, orient, resize, crop and encode one picture.

    Raises:
        Rejected: when it is no picture, damaged, cut short, too large, too small, or too long and narrow.
    """
    pixels = _decoded(content, pack.max_pixels)
    height, width, _ = pixels.shape
    if pack.min_side is not None and min(width, height) < pack.min_side:
        raise Rejected("smaller than pack.min_side", Image.fromarray(pixels))
    stored = _fitted(pixels, fit(pack))
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


def fitted(picture: Image.Image, how: Fit) -> Image.Image:
    """An RGB picture as it is stored: its centre in the shape of the nearest aspect, or all of it.

    Raises:
        Rejected: when a long and narrow picture would have to be enlarged, or stored whole, beyond reason.
    """
    return _fitted(np.array(picture), how)


def _fitted(pixels: Pixels, how: Fit) -> Image.Image:
    tall, wide, _ = pixels.shape
    width, height = nearest(how.shapes, wide, tall)
    try:
        if how.whole:
            return Image.fromarray(_whole(pixels, (width, height)))
        return Image.fromarray(framed(pixels, Frame(width=width, height=height)))
    except Undecodable as error:
        raise Rejected(error.cause, Image.fromarray(pixels)) from error


def _whole(pixels: Pixels, shape: Shape) -> Pixels:
    """All of a picture, if it can be written and readers with the usual bounds will decode it."""
    tall, wide = covering(pixels.shape[1], pixels.shape[0], *shape)
    if max(tall, wide) > LONGEST or tall * wide > MAX_PIXELS:
        raise Undecodable("too long and narrow to be stored whole")
    return cover(pixels, *shape)


def encode(picture: Image.Image, pack: Pack) -> bytes:
    """The stored bytes: no metadata, fixed settings, full colour resolution."""
    buffer = io.BytesIO()
    if pack.format == "png":
        picture.save(buffer, "PNG", compress_level=6)
    else:
        picture.save(buffer, "JPEG", quality=pack.jpeg_quality or DEFAULT_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
