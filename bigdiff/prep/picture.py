"""A file's bytes to the stored square: decoded once, refused with a reason, the same bytes each time.

Contract of the stored picture: 8-bit RGB; the orientation tag applied; 16-bit samples scaled, not clipped; white below
what is transparent; the centre square, resized with Pillow's bicubic filter (antialiased). Colour profiles are not
applied, as in the sets that Stable Diffusion was trained on.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Pack

# Pillow's other readers are older, less used on the web, or start other programs (EPS).
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
Image.init()  # registers them all: a name that is asked for before its plugin is loaded is a KeyError
# What Pillow's readers raise for damaged files.
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_SIXTEEN_BIT: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N")


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
    if not content:
        raise Rejected("empty file")
    Image.MAX_IMAGE_PIXELS = None  # checked here, before anything is decoded; Pillow would only warn at first
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise Rejected("more than pack.max_pixels")
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise Rejected("not a picture") from error
    except _DAMAGE as error:
        raise Rejected("damaged or cut short") from error


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


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255, which makes a 16-bit picture white.
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise Rejected("pixel type not supported")
        return Image.fromarray(((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8), "L").convert("RGB")
    if picture.mode == "F":
        raise Rejected("pixel type not supported")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return _plain(picture.convert("RGB"))


def _plain(picture: Image.Image) -> Image.Image:
    picture.info.clear()  # profiles, comments and orientation would be written into the stored file
    return picture
