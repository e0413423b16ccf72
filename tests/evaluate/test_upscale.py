import math

import numpy as np
import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import upscale


@pytest.mark.parametrize("factor", [2.0, 1.5, 3.25])
def test_values_are_interpolated_between_the_centres_of_latents(factor: float) -> None:
    latents = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = upscale.larger(latents, factor)
    assert found.shape == (2, 3, int(4 * factor), int(8 * factor))
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            y = np.clip((row + 0.5) / factor - 0.5, 0, 3)
            x = np.clip((column + 0.5) / factor - 0.5, 0, 7)
            top, left = int(y), int(x)
            down, right = min(top + 1, 3), min(left + 1, 7)
            above = latents[..., top, left] * (1 - x % 1) + latents[..., top, right] * (x % 1)
            below = latents[..., down, left] * (1 - x % 1) + latents[..., down, right] * (x % 1)
            expected = above * (1 - y % 1) + below * (y % 1)
            torch.testing.assert_close(found[..., row, column], expected, rtol=1e-6, atol=1e-6)


def test_factors_are_those_that_give_whole_latents() -> None:
    assert upscale.shape(64, 64, 2) == (128, 128)
    assert upscale.shape(64, 96, 1.5) == (96, 144)
    assert upscale.shape(96, 96, 1.333333333) == (128, 128)


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [(1.0, "1 must be above 1"), (0.5, "0.5 must be"), (math.nan, "nan must"), (math.inf, "inf must")],
)
def test_factors_that_do_not_enlarge_are_refused(factor: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"--upscale {sentence}"):
        upscale.shape(64, 64, factor)


@pytest.mark.parametrize(("height", "width", "factor"), [(64, 64, 1.1), (64, 96, 1.01), (8, 8, 1.05), (6, 9, 1.5)])
def test_a_refused_factor_comes_with_one_that_works(height: int, width: int, factor: float) -> None:
    with pytest.raises(UsageError, match="gives no whole ones: take another, such as") as caught:
        upscale.shape(height, width, factor)
    upscale.shape(height, width, float(str(caught.value).split()[-1]))
