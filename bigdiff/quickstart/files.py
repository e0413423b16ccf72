"""Pictures of scenes as files, in the forms that the web has them in: right, awkward and broken."""

import io
import struct
import zlib
from itertools import count
from typing import Final

import cv2
import numpy as np
from PIL import Image, ImageDraw

from bigdiff.quickstart.scenes import Scene, render, scene

# Scene numbers beyond those of any ordinary row, for kinds that need scenes of certain colours.
_GREY_SCENES: Final = 10_000_000
_WHITE_SCENES: Final = 20_000_000
_STRIDE: Final = 10_000  # scene numbers set aside for one row to find a fitting scene in
_ORIENTATION: Final = 0x0112  # EXIF tag
# EXIF value -> how an upright picture must be turned so that showing it with that value brings it back.
_TURNS: Final = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_TINY: Final = 8  # pixels
SMALL: Final = 32  # pixels
_BOMB: Final = 12_000  # pixels a side: 144 megapixels in about 20 kB
_HIDDEN: Final = (255, 0, 255)  # colour below transparent pixels


def scene_number(kind: str, number: int, seed: int) -> int:
    """Which scene a row shows: its own number, or for kinds that lose colour the first fitting one set aside for it."""
    if kind in ("grey", "sixteen_bit"):
        return _find(_GREY_SCENES + number * _STRIDE, seed, grey=True)
    if kind == "rgba":
        return _find(_WHITE_SCENES + number * _STRIDE, seed, grey=False)
    return number


def extension(kind: str, number: int) -> str:
    """The ending of a row's file name: mostly jpg, some png and webp."""
    if kind in ("rgba", "sixteen_bit", "sixteen_bit_rgb", "bomb"):
        return "png"
    if kind in ("rotated", "grey", "truncated", "short_body"):
        return "jpg"
    return {0: "png", 1: "webp"}.get(number % 20, "png" if number % 5 == 0 else "jpg")


def content(kind: str, drawn: Scene, number: int, size: int) -> bytes:
    """The file's bytes."""
    special = {"html": _page, "empty": bytes, "bomb": _bomb}.get(kind)
    if special is not None:
        return special()
    picture = truth(kind, drawn, size)
    if kind == "rotated":
        return _rotated(picture, (3, 6, 8)[number % 3])
    if kind == "rgba":
        return _encoded(_transparent(render(drawn, size), drawn), "png")
    if kind in ("sixteen_bit", "sixteen_bit_rgb"):
        return _sixteen_bit(picture, grey=kind == "sixteen_bit")
    if kind == "grey":
        picture = picture.convert("L")
    whole = _encoded(picture, extension(kind, number))
    return whole[: len(whole) // 2] if kind == "truncated" else whole


def truth(kind: str, drawn: Scene, size: int) -> Image.Image:
    """What a careful reader sees in the file: upright RGB."""
    picture = render(drawn, {"tiny": _TINY, "small": SMALL}.get(kind, size))
    if kind == "watermarked":
        _mark(picture)
    if kind in ("grey", "sixteen_bit"):
        return picture.convert("L").convert("RGB")
    if kind == "rgba":
        shown = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(shown, _transparent(picture, drawn)).convert("RGB")
    return picture


def _find(first: int, seed: int, grey: bool) -> int:
    for index in count(first):
        drawn = scene(seed, index)
        colours = {drawn.background, *(thing.colour for thing in drawn.things)}
        if (colours <= {"black", "white"}) if grey else (drawn.background == "white"):
            return index
    raise AssertionError("count() does not end")


def _encoded(picture: Image.Image, extension: str) -> bytes:
    buffer = io.BytesIO()
    if extension == "jpg":
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    elif extension == "webp":
        picture.save(buffer, "WEBP", quality=95, method=2)
    else:
        picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _rotated(upright: Image.Image, orientation: int) -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[_ORIENTATION] = orientation
    upright.transpose(_TURNS[orientation]).save(buffer, "JPEG", quality=95, subsampling=0, exif=tags)
    return buffer.getvalue()


def _transparent(picture: Image.Image, drawn: Scene) -> Image.Image:
    """RGBA: the background is transparent, and of another colour underneath."""
    values = np.asarray(picture)
    outside = (values == np.array(drawn.rgb, np.uint8)).all(-1)
    coloured = np.where(outside[..., None], np.array(_HIDDEN, np.uint8), values)
    alpha = np.where(outside, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([coloured, alpha]), "RGBA")


def _sixteen_bit(picture: Image.Image, grey: bool) -> bytes:
    values = np.asarray(picture).astype(np.uint16) * 257  # 255 -> 65535
    done, encoded = cv2.imencode(".png", values[..., 0] if grey else values[..., ::-1])
    assert done
    return bytes(encoded.tobytes())


def _mark(picture: Image.Image) -> None:
    canvas = ImageDraw.Draw(picture, "RGBA")
    for shift in range(-picture.width, picture.width, picture.width // 4):
        canvas.line((shift, 0, shift + picture.width, picture.height), fill=(255, 255, 255, 110), width=3)
    canvas.text((picture.width // 6, picture.height // 2 - 6), "STOCK PHOTO", fill=(255, 255, 255, 200))


def _page() -> bytes:
    return b"<!doctype html><html><head><title>Moved</title></head><body>This picture has moved.</body></html>\n"


def _bomb() -> bytes:
    header = struct.pack(">IIBBBBB", _BOMB, _BOMB, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + _BOMB // 8) * _BOMB), 9)
    chunks = b"".join(_chunk(name, data) for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
