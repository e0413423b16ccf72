"""Larger pictures than a model was trained on: clean latents, interpolated, with noise again, denoised at that size.

What the common interfaces call a "hires fix" with a latent upscaler. Drawn at the larger size from noise, a model
repeats its subjects; the interpolated latents say where what is.
"""

import math

import torch
from torch import Tensor

from bigdiff.config.errors import UsageError

_ROUNDING = 1e-6  # of a factor that a user types, such as 1.333333


def larger(latents: Tensor, factor: float) -> Tensor:
    """Latents [B, C, H, W] -> [B, C, factor H, factor W], bilinear without antialiasing, corners not aligned.

    Raises:
        UsageError: as `shape`.
    """
    height, width = latents.shape[-2:]
    return torch.nn.functional.interpolate(
        latents, shape(height, width, factor), mode="bilinear", align_corners=False, antialias=False
    )


def shape(height: int, width: int, factor: float) -> tuple[int, int]:
    """Height and width of latents after `larger`.

    Raises:
        UsageError: when they are not whole numbers, or no larger.
    """
    if not math.isfinite(factor) or factor <= 1:
        raise UsageError(f"--upscale {factor:g} must be above 1")
    found = round(height * factor), round(width * factor)
    if any(abs(side * factor - whole) > _ROUNDING * side for side, whole in zip((height, width), found, strict=True)):
        parts = math.gcd(height, width)
        near = max(round(factor * parts), parts + 1)
        raise UsageError(
            f"--upscale {factor:g} of {height} x {width} latents gives no whole ones: take another, such as "
            f"{near / parts:.7g}"
        )
    return found
