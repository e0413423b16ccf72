"""The part of a picture that a network is shown: resized to cover the frame (bicubic, antialiased), then cropped.

The one definition for latents, training on pictures and validation, so that all see the same pixels. The resize is
torch's for uint8: eight times as fast as Pillow's, one level off it in fewer than 1 of 80 values (0.3 % of a photo's),
and equal to torchvision's `Resize` of a tensor. It runs on one thread, outside Python's lock. Figures:
tests/bench/results/.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import torch

from bigdiff.data.decoding import MAX_PIXELS, Pixels, Undecodable, decode

RESIZE: Final = "bicubic shorter side"
CROP: Final = "center"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Which part of a picture is shown, `width` x `height` pixels of it."""

    width: int
    height: int
    across: int | None = None  # where the crop begins, as a fraction (0 to 2^32 - 1) of the room; None = centre
    down: int | None = None
    mirrored: bool = False


def boxes(width: int, height: int, count: int) -> tuple[Frame, ...]:
    """An odd `count` of frames, evenly spaced over the room of any picture from its one end to the other.

    The one in the middle is the centre, as without others, and each lies as far from it as its counterpart.
    """
    steps = max(count - 1, 1)
    before = [-(-(number << 32) // steps) for number in range(count // 2)]
    behind = [(1 << 32) - 1 - fraction for fraction in reversed(before)]
    return tuple(Frame(width=width, height=height, across=one, down=one) for one in (*before, None, *behind))


def framed(pixels: Pixels, frame: Frame) -> Pixels:
    """uint8 [frame.height, frame.width, 3], maybe a view: resized to cover the frame, cropped, mirrored.

    Raises:
        Undecodable: when a long and narrow picture would have to be enlarged beyond MAX_PIXELS.
    """
    return cropped(cover(pixels, frame.width, frame.height), frame)


def cropped(pixels: Pixels, frame: Frame) -> Pixels:
    """The frame's part of a picture that covers it already, as `cover` gives it: a view, or mirrored."""
    height, width, _ = pixels.shape
    left, top = _begin(width - frame.width, frame.across), _begin(height - frame.height, frame.down)
    pixels = pixels[top : top + frame.height, left : left + frame.width]
    if not frame.mirrored:
        return pixels
    mirrored: Pixels = cv2.flip(pixels, 1)  # numpy takes 1.5 ms for 512 px, this 0.04, and torch would start threads
    return mirrored


def square(content: bytes, resolution: int) -> tuple[Pixels, bool]:
    """The centre square as latents are made of it, uint8 [resolution, resolution, 3], and whether it was enlarged.

    Raises:
        Undecodable: as `decode` and `framed`.
    """
    pixels = decode(content)
    return framed(pixels, Frame(width=resolution, height=resolution)), min(pixels.shape[:2]) < resolution


def cover(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resized, its proportions kept, to the smallest size that covers `width` x `height`.

    For a square that is the shorter side, with torchvision's rounding.
    """
    tall, wide, _ = pixels.shape
    size = covering(wide, tall, width, height)
    if size == (tall, wide):
        return pixels
    if size[0] * size[1] > MAX_PIXELS:
        raise Undecodable("too long and narrow to be enlarged")
    # in this order torch sees [1, 3, H, W] in channels_last, which its uint8 kernel takes and gives without a copy
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, size, mode="bicubic", antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def covering(wide: int, tall: int, width: int, height: int) -> tuple[int, int]:
    """Height and width of a picture of `wide` x `tall` after `cover`."""
    by_width = width * tall >= height * wide
    return (width * tall // wide, width) if by_width else (height, height * wide // tall)


def has_room(wide: int, tall: int, frame: Frame) -> bool:
    """Whether some of a picture of `wide` x `tall` is left beside the frame."""
    return covering(wide, tall, frame.width, frame.height) != (frame.height, frame.width)


def _begin(room: int, fraction: int | None) -> int:
    return round(room / 2) if fraction is None else fraction * (room + 1) >> 32
