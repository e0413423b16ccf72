"""A file's bytes to the stored square: decoded once, refused with a reason, the same bytes each time.

Contract of the stored picture: 8-bit RGB; the orientation tag applied; 16-bit samples scaled, not clipped; white below
what is transparent; the centre square, resized with Pillow's bicubic filter (antialiased). Colour profiles are not
applied, as in the sets that Stable Diffusion was trained on.
"""

import io
from dataclasses import dataclass
from typing import Final

from PIL import Image

from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Pack
from bigdiff.data.decoding import TOO_LARGE, Undecodable, load

# Pillow's other readers are older, less used on the web, or start other programs (EPS).
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


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
    original_width: int  # of the file, after its orientation was applied
    original_height: int


def store(content: bytes, pack: Pack) -> Stored:
    """Decode, check, orient, crop, resize and encode one picture.

    Raises:
        Rejected: when it is no picture, damaged, cut short, too large, or too small.
    """
    picture = decode(content, pack.max_pixels)
    width, height = picture.size
    if pack.min_side is not None and min(width, height) < pack.min_side:
        raise Rejected("smaller than pack.min_side", picture)
    return Stored(content=encode(square(picture, pack.resolution), pack), original_width=width, original_height=height)


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The first frame as upright 8-bit RGB.

    Raises:
        Rejected: as in `store`.
    """
    try:
        return load(content, FORMATS, max_pixels)
    except Undecodable as error:
        raise Rejected("more than pack.max_pixels" if error.cause == TOO_LARGE else error.cause) from error


def square(picture: Image.Image, resolution: int) -> Image.Image:
    """The centre square of `picture`, `resolution` pixels a side.

    The filter reaches beyond the square's edge, so this equals resizing the whole picture and cropping it.
    """
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == resolution:
        return picture.crop(box)
    return picture.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)


def encode(picture: Image.Image, pack: Pack) -> bytes:
    """The stored bytes: no metadata, fixed settings, full colour resolution."""
    buffer = io.BytesIO()
    if pack.format == "png":
        picture.save(buffer, "PNG", compress_level=6)
    else:
        picture.save(buffer, "JPEG", quality=pack.jpeg_quality or DEFAULT_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
