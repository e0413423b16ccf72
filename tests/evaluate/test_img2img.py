"""How a picture is read and fitted; what is drawn from it is in test_stages.py."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.data import decoding
from bigdiff.evaluate import img2img

# red at the left, blue at the right
HALVES = np.zeros((40, 80, 3), np.uint8)
HALVES[:, :40, 0] = HALVES[:, 40:, 2] = 255


def test_a_picture_is_upright_rgb(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by 90 degrees
    turned = Image.fromarray(HALVES).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=tags)
    assert np.abs(img2img.read(tmp_path / "a.jpg").astype(int) - HALVES).mean() < 4
    Image.new("LA", (5, 4), (0, 0)).save(tmp_path / "b.png")
    assert (img2img.read(tmp_path / "b.png") == 255).all()  # transparent


def test_what_is_no_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(UsageError, match=r"--image .*a\.png cannot be read: No such file"):
        img2img.read(file)
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        img2img.read(tmp_path)
    for content in (b"", b"a red circle"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"cannot be used: .*; give a whole JPEG, PNG or WebP"):
            img2img.read(file)
    stream = io.BytesIO()
    Image.fromarray(HALVES).save(stream, "PNG")
    file.write_bytes(stream.getvalue()[:-30])
    with pytest.raises(UsageError, match="damaged or cut short"):
        img2img.read(file)
    Image.new("1", (20_000, 10_000)).save(file)
    monkeypatch.setattr(decoding.ImageOps, "exif_transpose", None)  # what comes after decoding
    with pytest.raises(UsageError, match="more pixels than allowed"):
        img2img.read(file)


@pytest.mark.parametrize(
    ("shape", "size"), [((40, 80), (32, 16)), ((80, 40), (16, 32)), ((41, 59), (16, 16)), ((30, 41), (16, 16))]
)
def test_the_shorter_side_is_the_size_and_the_longer_one_whole_latents(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    assert img2img.fitted(pixels, 16, 8).size == size


def test_the_centre_stays() -> None:
    wide = np.concatenate([HALVES[:, :40], np.full((40, 17, 3), 255, np.uint8), HALVES[:, 40:]], axis=1)
    found = np.asarray(img2img.fitted(wide, 40, 20)).astype(int)
    assert found.shape == (40, 80, 3)
    assert np.array_equal(found, wide[:, 8:88])


def test_stripes_are_refused() -> None:
    with pytest.raises(UsageError, match="too long and narrow"):
        img2img.fitted(np.zeros((1, 2000, 3), np.uint8), 512, 8)
