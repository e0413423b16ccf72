import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from bigdiff.quickstart.faults import AWKWARD, FAULTY
from bigdiff.quickstart.files import content, extension, scene_number, truth
from bigdiff.quickstart.scenes import scene

SIZE = 48
KINDS = [kind.name for kind in (*AWKWARD, *FAULTY) if kind.name not in ("local_file", "duplicate_url")]


def made(kind: str, number: int) -> bytes:
    return content(kind, scene(0, scene_number(kind, number, 0)), number, SIZE)


def opened(kind: str, number: int) -> Image.Image:
    picture = Image.open(io.BytesIO(made(kind, number)))
    picture.load()
    return picture


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_each_time(kind: str) -> None:
    assert made(kind, 7) == made(kind, 7)


@pytest.mark.parametrize("number", range(8))
def test_a_sound_file_is_what_its_name_says_and_shows_the_scene(number: int) -> None:
    picture = opened("sound", number)
    assert picture.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension("sound", number)]
    shown = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(shown - np.asarray(truth("sound", scene(0, number), SIZE))).mean() < 3


@pytest.mark.parametrize("number", range(3))
def test_a_rotated_file_is_upright_only_by_its_tag(number: int) -> None:
    picture = opened("rotated", number)
    shown = truth("rotated", scene(0, number), SIZE)
    assert np.abs(np.asarray(ImageOps.exif_transpose(picture)).astype(int) - np.asarray(shown)).mean() < 3
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(shown)).mean() > 3


def test_sixteen_bit_files_have_sixteen_bits() -> None:
    for kind, dimensions in (("sixteen_bit", 2), ("sixteen_bit_rgb", 3)):
        values = cv2.imdecode(np.frombuffer(made(kind, 3), np.uint8), cv2.IMREAD_UNCHANGED)
        assert values.dtype == np.uint16
        assert values.ndim == dimensions
        assert 257 < values.mean() < 65535


def test_grey_scenes_lose_nothing_of_their_captions_by_being_grey() -> None:
    assert opened("grey", 3).mode == "L"
    for number in range(5):
        shown = scene(0, scene_number("grey", number, 0))
        assert {shown.background, *(thing.colour for thing in shown.things)} <= {"black", "white"}
    assert len({scene_number("grey", number, 0) for number in range(50)}) == 50


def test_a_transparent_file_hides_another_colour_and_shows_white() -> None:
    picture = opened("rgba", 3)
    drawn = scene(0, scene_number("rgba", 3, 0))
    assert drawn.background == "white"
    assert picture.mode == "RGBA"
    assert picture.getpixel((0, 0)) == (255, 0, 255, 0)
    assert truth("rgba", drawn, SIZE).getpixel((0, 0)) == (255, 255, 255)


def test_broken_files_are_broken() -> None:
    with pytest.raises(OSError, match=r"(?i)truncated"):
        opened("truncated", 3)
    assert made("html", 3).startswith(b"<!doctype html>")
    assert made("empty", 3) == b""
    bomb = made("bomb", 3)
    assert len(bomb) < 100_000
    assert Image.open(io.BytesIO(bomb)).size == (12_000, 12_000)


def test_a_watermark_can_be_seen() -> None:
    marked, plain = (np.asarray(truth(kind, scene(0, 3), SIZE)).astype(int) for kind in ("watermarked", "sound"))
    assert np.abs(marked - plain).mean() > 5
    assert opened("tiny", 3).size == (8, 8)
