"""A picture file's bytes to upright 8-bit RGB, the one definition for what is stored, encoded and trained on.

The orientation tag is applied; 16-bit samples are scaled, not clipped; what is transparent shows white; colour profiles
are not applied, as in the sets that Stable Diffusion was trained on.

JPEGs are decoded whole by libjpeg-turbo (simplejpeg), to the same values as Pillow's; Pillow reads the rest. Decoding
at a fraction of the size would make a 1,500 px photo 512 px 1.6 times as fast, but gives other pixels: up to 95 levels
apart at edges, half a pixel aside where the size is odd. Figures: tests/bench/results/.
"""

import io
import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_PIXELS: Final = 100_000_000  # refused from the header, before decoding
TOO_LARGE: Final = "more pixels than allowed"
Image.init()  # registers all formats: a name that is asked for before its plugin is loaded is a KeyError
# What Pillow's readers raise for damaged files.
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_SIXTEEN_BIT: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]


class Undecodable(Exception):
    """Why there are no pixels: a cause out of a small set, fit for counting."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def decode(content: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Pixels:
    """The whole picture, upright: uint8 [height, width, 3].

    Raises:
        Undecodable: when it is in none of `formats`, damaged, cut short, or larger than `max_pixels`.
    """
    pixels = _jpeg(content, max_pixels)
    return np.array(load(content, formats, max_pixels)) if pixels is None else pixels


def load(content: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """The first frame of a picture in one of Pillow's `formats`, as upright 8-bit RGB without metadata.

    Raises:
        Undecodable: as `decode`.
    """
    if not content:
        raise Undecodable("empty file")
    Image.MAX_IMAGE_PIXELS = None  # checked here, before anything is decoded; Pillow would only warn at first
    try:
        with Image.open(io.BytesIO(content), formats=formats) as opened:
            if opened.width * opened.height > max_pixels:
                raise Undecodable(TOO_LARGE)
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise Undecodable("not a picture") from error
    except _DAMAGE as error:
        raise Undecodable("damaged or cut short") from error


def _jpeg(content: bytes, max_pixels: int) -> Pixels | None:
    """None for what is no JPEG of the usual kinds or not a whole one: Pillow reads more, and judges what is damaged."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        if height * width > max_pixels:
            raise Undecodable(TOO_LARGE)
        return _upright(simplejpeg.decode_jpeg(content, "RGB"), content)
    except _DAMAGE:
        return None


def _upright(pixels: Pixels, content: bytes) -> Pixels:
    segments = _segments(content)
    if b"Exif\0\0" not in segments and b"tiff:Orientation" not in segments:
        return pixels
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def _segments(content: bytes) -> bytes:
    """What a JPEG has in front of its first scan; all of it where that cannot be told."""
    at = 2
    while content[at : at + 1] == b"\xff":
        kind = content[at + 1 : at + 2]
        if kind == b"\xda":
            return content[:at]
        at += 1 if kind == b"\xff" else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return content


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255, which makes a 16-bit picture white.
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise Undecodable("pixel type not supported")
        return Image.fromarray(((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8), "L").convert("RGB")
    if picture.mode == "F":
        raise Undecodable("pixel type not supported")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    picture = picture.convert("RGB")
    picture.info.clear()  # profiles, comments and orientation would be written into a stored file
    return picture
