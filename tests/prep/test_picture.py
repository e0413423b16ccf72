import io
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, Resize

from bigdiff.config.prep import Pack
from bigdiff.data.decoding import decode as pixels_of
from bigdiff.data.pixels import Frame, cover, framed
from bigdiff.prep.buckets import Fit
from bigdiff.prep.phash import phash
from bigdiff.prep.picture import FORMATS, LONGEST, Rejected, decode, fitted, store

LIMIT = 10_000_000
RAMP = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (48, 1))  # dark at the left
COLOURS = np.dstack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)])


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def difference(content: bytes, truth: np.ndarray) -> float:
    decoded = decode(content, LIMIT)
    assert decoded.mode == "RGB"
    shown = np.asarray(decoded).astype(int)
    assert shown.shape == (*truth.shape[:2], 3)
    return float(np.abs(shown - (truth if truth.ndim == 3 else truth[..., None])).mean())


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str) -> None:
    palette = kind == "GIF"
    options = {} if kind in ("PNG", "BMP", "TIFF", "GIF") else {"quality": 95}
    assert difference(saved(Image.fromarray(COLOURS), kind, **options), COLOURS) < (12 if palette else 4)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = RAMP.astype(np.uint16) * 257
    assert difference(cv2.imencode(".png", wide)[1].tobytes(), RAMP) <= 0.01
    colours = COLOURS.astype(np.uint16) * 257
    assert difference(cv2.imencode(".png", colours[..., ::-1])[1].tobytes(), COLOURS) <= 0.01
    alpha = np.dstack([colours[..., ::-1], np.full_like(wide, 65535)])
    assert difference(cv2.imencode(".png", alpha)[1].tobytes(), COLOURS) <= 0.01
    assert difference(cv2.imencode(".tiff", wide)[1].tobytes(), RAMP) <= 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright, tags = Image.fromarray(COLOURS), Image.Exif()
    tags[0x0112] = orientation
    turned = upright.transpose(turns[orientation]) if orientation in turns else upright
    assert difference(saved(turned, "JPEG", quality=95, subsampling=0, exif=tags), COLOURS) < 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    shown = np.asarray(Image.fromarray(COLOURS).convert(mode).convert("RGB"))
    assert difference(saved(Image.fromarray(COLOURS).convert(mode), kind), shown) < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    picture = Image.fromarray(COLOURS).convert(mode)
    picture.putalpha(Image.fromarray(np.where(RAMP < 128, 0, 255).astype(np.uint8)))
    base = np.asarray(Image.fromarray(COLOURS).convert(mode[:-1]).convert("RGB"))
    assert difference(saved(picture, "PNG"), np.where(RAMP[..., None] < 128, 255, base)) == 0


def test_a_transparent_palette_entry_shows_white() -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    assert difference(saved(picture, "PNG", transparency=1), np.full((8, 8, 3), 255)) == 0


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty file"),
        (b"<html>gone</html>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (saved(Image.fromarray(COLOURS), "JPEG")[:-200], "damaged or cut short"),
        (saved(Image.fromarray(COLOURS), "PNG")[:-30], "damaged or cut short"),
        (saved(Image.fromarray(COLOURS), "WEBP")[:-30], "damaged or cut short"),
        (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "pixel type not supported"),
    ],
)
def test_what_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(Rejected) as refused:
        decode(content, LIMIT)
    assert refused.value.cause == cause


def test_a_bomb_is_refused_from_its_header() -> None:
    bomb = saved(Image.new("1", (9_000, 9_000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(Rejected, match=r"more than pack\.max_pixels"):
        decode(bomb, 80_000_000)


def test_the_stored_square_is_the_centre_and_the_same_each_time() -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = (200, 100, 50)
    content = saved(Image.fromarray(wide), "PNG")
    first, again = store(content, Pack(resolution=20, format="png")), store(content, Pack(resolution=20, format="png"))
    assert first == again
    assert (first.original_width, first.original_height) == (100, 40)
    shown = np.asarray(Image.open(io.BytesIO(first.content)))
    assert shown.shape == (20, 20, 3)
    assert (shown[:, 2:-2] == (200, 100, 50)).all()
    resized_then_cropped = Image.fromarray(wide).resize((50, 20), Image.Resampling.BICUBIC).crop((15, 0, 35, 20))
    assert np.abs(shown.astype(int) - np.asarray(resized_then_cropped)).max() <= 1


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(np.asarray(fitted(Image.fromarray(stripes), Fit(shapes=((16, 16),)))).astype(int) - 127).max() < 12


SIZES = [(100, 70), (70, 100), (33, 200), (64, 64), (640, 64), (50, 20), (65, 64)]


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_picture_is_torchvisions_resize_of_what_was_fetched(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    stored = store(saved(Image.fromarray(pixels), "PNG"), Pack(resolution=64, crop="none", format="png"))
    shown = np.asarray(Image.open(io.BytesIO(stored.content)))
    assert np.array_equal(shown, cover(pixels, 64, 64))
    resized = Resize(64, InterpolationMode.BICUBIC, antialias=True)(torch.from_numpy(pixels).permute(2, 0, 1))
    assert np.array_equal(shown, resized.permute(1, 2, 0).numpy())
    assert shown.shape == (stored.height, stored.width, 3) and min(shown.shape[:2]) == 64
    assert (stored.original_width, stored.original_height) == size
    assert stored.phash == phash(Image.fromarray(shown))


@pytest.mark.parametrize("size", SIZES)
def test_its_centre_is_what_would_be_stored_of_it_cropped(size: tuple[int, int]) -> None:
    content = saved(Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)), "PNG")
    whole = store(content, Pack(resolution=64, crop="none", format="png"))
    square = store(content, Pack(resolution=64, format="png"))
    assert store(whole.content, Pack(resolution=64, format="png")).content == square.content
    assert framed(pixels_of(whole.content), Frame(width=64, height=64)).tobytes() == pixels_of(square.content).tobytes()
    assert (whole == square) == (size == (64, 64))


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_how_long_and_narrow_a_whole_picture_may_be(kind: Literal["jpg", "png"]) -> None:
    pack = Pack(resolution=16, crop="none", format=kind)
    longest = store(saved(Image.new("RGB", (LONGEST, 16), (9, 90, 200)), "PNG"), pack)
    assert pixels_of(longest.content).shape == (16, LONGEST, 3)
    for size in ((LONGEST + 1, 16), (1, 5_000)):
        with pytest.raises(Rejected, match="too long and narrow to be stored whole") as refused:
            store(saved(Image.new("RGB", size), "PNG"), pack)
        assert refused.value.picture is not None
    assert store(saved(Image.new("RGB", (1, 5_000)), "PNG"), Pack(resolution=16)).height == 16


def test_a_whole_picture_has_no_more_pixels_than_readers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = saved(Image.new("RGB", (90, 30)), "PNG")
    monkeypatch.setattr("bigdiff.prep.picture.MAX_PIXELS", 90 * 30)
    assert store(wide, Pack(resolution=30, crop="none")).width == 90
    with pytest.raises(Rejected, match="too long and narrow to be stored whole"):
        store(wide, Pack(resolution=31, crop="none"))


def test_a_small_file_is_refused_whatever_its_metadata_said() -> None:
    content = saved(Image.fromarray(COLOURS), "PNG")
    with pytest.raises(Rejected, match=r"smaller than pack\.min_side") as refused:
        store(content, Pack(min_side=49))
    assert refused.value.picture is not None
    assert store(content, Pack(min_side=48)).original_height == 48


def test_nothing_of_the_files_metadata_is_stored() -> None:
    tags = Image.Exif()
    tags[0x010E] = "a private description"
    content = saved(Image.fromarray(COLOURS), "JPEG", exif=tags, comment=b"a comment", icc_profile=b"x" * 200)
    stored = store(content, Pack(resolution=48)).content
    assert b"private" not in stored
    assert b"comment" not in stored
    assert b"ICC" not in stored


@pytest.mark.parametrize(("size", "shape"), [((300, 100), (80, 48)), ((100, 90), (64, 64)), ((90, 150), (48, 80))])
def test_with_buckets_a_picture_keeps_most_of_its_aspect(size: tuple[int, int], shape: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    stored = store(saved(picture, "PNG"), Pack(resolution=64, bucket_step=16, format="png"))
    assert (stored.width, stored.height) == shape
    assert Image.open(io.BytesIO(stored.content)).size == shape
