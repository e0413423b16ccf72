"""Many pictures as one: a grid, with captions under the pictures and the settings in the PNG."""

import io
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from bigdiff.runtime.files import write_bytes

Pictures = npt.NDArray[np.uint8]

GAP: Final = 4  # pixels between pictures
LEAST_SIDE: Final = 128  # a smaller picture is enlarged by a whole number, so that its caption has room
_LINE: Final = 13  # pixels of a caption's line
_CHARACTER: Final = 6  # pixels of a mean character
_MOST_LINES: Final = 4


def tiled(pictures: Pictures, columns: int = 0) -> Pictures:
    """uint8 [N, H, W, 3] as one [H', W', 3] picture on white, row by row; 0 columns is about a square."""
    count, height, width, _ = pictures.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = (place // columns) * (height + GAP), (place % columns) * (width + GAP)
        whole[top : top + height, left : left + width] = picture
    return whole


def captioned(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 0) -> Image.Image:
    """The pictures (of one size) in a grid, each with its caption beneath."""
    width, height = pictures[0].size
    scale = max(1, math.ceil(LEAST_SIDE / width))
    cell = (width * scale, height * scale)
    texts = [_wrapped(caption, cell[0]) for caption in captions]
    below = _LINE * max(len(text) for text in texts) + GAP
    cells = []
    for picture, text in zip(pictures, texts, strict=True):
        drawn = Image.new("RGB", (cell[0], cell[1] + below), "white")
        drawn.paste(picture.resize(cell, Image.Resampling.NEAREST), (0, 0))
        canvas = ImageDraw.Draw(drawn)
        font = ImageFont.load_default(size=11)
        for number, line in enumerate(text):
            canvas.text((0, cell[1] + 1 + number * _LINE), line, fill="black", font=font)
        cells.append(np.asarray(drawn))
    return Image.fromarray(tiled(np.stack(cells), columns))


def save(path: Path, picture: Image.Image, settings: dict[str, Any]) -> None:
    """Write a PNG whose text chunk `settings` holds `settings` as JSON."""
    about = PngImagePlugin.PngInfo()
    about.add_text("settings", json.dumps(settings, sort_keys=True))
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=about)
    write_bytes(path, content.getvalue())


def _wrapped(caption: str, width: int) -> list[str]:
    lines = textwrap.wrap(caption, max(8, width // _CHARACTER)) or [""]
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][:-3] + "..."]
