from pathlib import Path

import pytest
import torch

from bigdiff.models import components
from bigdiff.models.encoders import moments
from bigdiff.models.halving import KINDS, halved, moved, name_of


def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("precision", KINDS)
def test_a_half_encodes_as_the_whole_to_its_bits(toy: Path, precision: str) -> None:
    vae = components.load_vae(str(toy / "vae"))
    half = halved(vae, precision)
    assert half is not None and name_of(half) == precision and vae.dtype == torch.float32
    assert sum(one.numel() for one in half.parameters()) < sum(one.numel() for one in vae.parameters())
    given, right = moments(half, pictures().to(half.dtype)), moments(vae, pictures())
    assert given.dtype == KINDS[precision]
    bits = torch.finfo(half.dtype).eps
    assert bits / 100 < moved(given, right) < 10 * bits


def test_fp32_has_no_half(toy: Path) -> None:
    assert halved(components.load_vae(str(toy / "vae")), "fp32") is None


def test_what_a_posterior_is_moved_by() -> None:
    random = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(8, 4, 16, 16, generator=random)
    right = torch.cat([mean, torch.full_like(mean, -20.0)], 1)
    shifted = right + torch.cat([torch.full_like(mean, 0.3), torch.zeros_like(mean)], 1)
    assert moved(right, right) == 0
    assert moved(shifted, right) == pytest.approx(0.3 / float(mean.std()), rel=1e-3)
    wider = torch.cat([mean, torch.full_like(mean, -2.0)], 1)  # deviations of exp(-1) in place of exp(-10)
    assert moved(wider, right) == pytest.approx(0.3679 / float(mean.std()), rel=1e-3)
    assert not moved(right * float("nan"), right) <= 1e9
