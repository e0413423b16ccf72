import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from bigdiff.prep import crop


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def content(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("width", "height"), [(96, 96), (97, 64), (64, 97), (200, 67), (131, 333), (65, 64), (64, 64), (40, 31), (64, 67)]
)
def test_pixels_are_those_of_torchvisions_resize_and_center_crop(width: int, height: int) -> None:
    image = picture(width, height)
    expected = Compose([Resize(64, InterpolationMode.BICUBIC), CenterCrop(64)])(image)
    pixels, enlarged = crop.decode(content(image), 64)
    assert np.array_equal(pixels, np.asarray(expected))
    assert enlarged == (min(width, height) < 64)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP")]
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    pixels, _ = crop.decode(content(picture(40, 50, mode), kind), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "wrong", [b"", b"<html>no image</html>", content(picture(9, 9), "GIF"), content(picture(99, 99))[:500]]
)
def test_what_is_no_image_is_refused(wrong: bytes) -> None:
    with pytest.raises((OSError, ValueError)):
        crop.decode(wrong, 8)
