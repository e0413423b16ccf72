import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from bigdiff.data.decoding import FORMATS, TOO_LARGE, Undecodable, decode, load


def soft(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with edges and slopes, so that a shifted or wrongly upsampled one differs."""
    noise = np.random.default_rng((width, height)).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def turned(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (61, 47), (1, 1), (3, 200)])
def test_jpegs_have_the_very_pixels_of_pillow(
    mode: str, subsampling: int, progressive: bool, width: int, height: int
) -> None:
    image = soft(width, height, mode)
    content = saved(image, quality=88, subsampling=subsampling, progressive=progressive)
    pixels = decode(content)
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)
    assert np.array_equal(pixels, by_pillow(content))


def test_a_jpeg_stored_as_rgb_is_not_taken_for_ycc() -> None:
    image = soft(40, 30)
    content = saved(image, quality=95, keep_rgb=True)
    assert np.array_equal(decode(content), by_pillow(content))
    assert np.abs(decode(content).astype(int) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_come_upright(orientation: int, kind: str) -> None:
    content = saved(soft(40, 31), kind, exif=turned(orientation))
    pixels = decode(content)
    assert pixels.shape == ((40, 31, 3) if orientation >= 5 else (31, 40, 3))
    assert np.array_equal(pixels, by_pillow(content))


def test_an_orientation_in_xmp_counts_too() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    content = saved(soft(40, 31), xmp=xmp)
    assert decode(content).shape == (40, 31, 3)
    assert np.array_equal(decode(content), by_pillow(content))


def test_an_orientation_behind_other_segments_is_found() -> None:
    thumbnail = saved(soft(40, 31))  # with a scan of its own, in front of the real one
    plain, tagged = saved(soft(60, 31)), saved(soft(60, 31), exif=turned(8))
    begin = tagged.index(b"\xff\xe1")
    tag = tagged[begin : begin + 2 + int.from_bytes(tagged[begin + 2 : begin + 4], "big")]
    other = b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    for segments in (other + tag, other + b"\xff\xff" + tag, tag + other, other):
        content = plain[:2] + segments + plain[2:]
        assert np.array_equal(decode(content), by_pillow(content))
        assert decode(content).shape == ((60, 31, 3) if tag in segments else (31, 60, 3))


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("RGB", "PNG")])
def test_other_formats_and_modes_become_rgb(mode: str, kind: str) -> None:
    content = saved(soft(40, 31, mode), kind)
    assert np.array_equal(decode(content), by_pillow(content))


def test_what_is_transparent_shows_white() -> None:
    image = soft(40, 31, "RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (decode(saved(image, "PNG")) == 255).all()


def test_sixteen_bits_are_scaled() -> None:
    wide = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    shown = decode(cv2.imencode(".png", wide)[1].tobytes())
    assert np.abs(shown[..., 0].astype(float) - wide / 257).max() <= 0.5


def test_extra_bytes_that_libjpeg_only_warns_of_are_no_damage() -> None:
    whole = saved(soft(64, 48), quality=88)
    scan = whole.index(b"\xff\xda")
    warned = whole[:scan] + b"\0\0\0" + whole[scan:]
    assert np.array_equal(decode(warned), by_pillow(whole))


JPEG, PNG = saved(soft(99, 98)), saved(soft(99, 98), "PNG")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty file"),
        (b"<html>no image</html>", "not a picture"),
        (saved(soft(9, 9), "GIF"), "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (JPEG[:3], "not a picture"),
        (JPEG[:-500], "damaged or cut short"),
        (JPEG[:-1000], "damaged or cut short"),
        (PNG[:500], "damaged or cut short"),
        (saved(soft(99, 98), "WEBP")[:-30], "damaged or cut short"),
    ],
)
def test_what_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(Undecodable) as refused:
        decode(content)
    assert refused.value.cause == cause


def test_no_bytes_at_all_make_anything_but_pixels_or_a_refusal() -> None:
    random = np.random.default_rng(0)
    outcomes = set()
    for content in (JPEG, PNG, saved(soft(60, 50), exif=turned(6))):
        for _ in range(60):
            broken = bytearray(content)
            for place in random.integers(0, len(broken), 8):
                broken[place] = random.integers(256)
            try:
                outcomes.add(decode(bytes(broken)).dtype)
            except Undecodable as error:
                outcomes.add(error.cause)
    assert np.dtype(np.uint8) in outcomes
    assert outcomes <= {np.dtype(np.uint8), "not a picture", "damaged or cut short", TOO_LARGE}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs_are_refused_from_their_header(kind: str) -> None:
    bomb = saved(Image.new("L", (11_000, 11_000)), kind)
    assert len(bomb) < 2_000_000
    with pytest.raises(Undecodable, match=TOO_LARGE):
        decode(bomb)
    small = saved(soft(30, 20), kind)
    assert decode(small, 600).shape == (20, 30, 3)
    with pytest.raises(Undecodable, match=TOO_LARGE):
        decode(small, 599)


def test_pixels_may_be_written_to_and_pillow_stays_as_it_was() -> None:
    for content in (JPEG, PNG, saved(soft(9, 8), exif=turned(3))):
        decode(content)[:] = 0
    assert load(PNG, FORMATS, 10**6).info == {}


def test_torch_is_not_imported() -> None:
    script = "import sys, bigdiff.data.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
