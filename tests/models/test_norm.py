"""The fused norm without a GPU: by Triton's interpreter, in a process of its own."""

import pytest
import torch
from diffusers import UNet2DModel
from triton_runs import interpreted, network

from bigdiff.models import checked, norm
from bigdiff.runtime.world import World

# float64 operations, by norms, at sizes with one tile and several, whole and not, of groups of any width
NUMBERS = """
from functools import partial
import torch
from bigdiff.models import checked, norm
torch.manual_seed(0)
for channels, groups, height, width in ((8, 4, 1, 1), (64, 32, 5, 7), (40, 4, 11, 13), (200, 10, 16, 20), (6, 6, 3, 3)):
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for shifted in (False, True):
            # means far from zero, where sums of squares would lose what is left
            x = (3 * torch.randn(2, channels, height, width) + 30 * torch.randn(2, channels, 1, 1)).to(kind)
            shift = [(10 * torch.randn(2, channels)).to(kind)] if shifted else []
            given = [x, torch.randn(channels).to(kind), torch.randn(channels).to(kind), *shift]
            behind, wide = torch.randn(2, channels, height, width).to(kind), [one.double() for one in given]
            known = checked.gradients(partial(norm.eager, groups, 1e-5), wide, behind.double())
            twin = checked.gradients(partial(norm.eager, groups, 1e-5), given, behind)
            found = checked.gradients(partial(norm.fused, groups, 1e-5), given, behind)
            assert found[0].is_contiguous(memory_format=torch.channels_last) or height * width == 1
            for number, (one, also, other) in enumerate(zip(found, twin, known, strict=True)):
                assert one.dtype == kind
                ours_off, twin_off = ((each.double() - other).norm() / other.norm() for each in (one, also))
                told = (channels, groups, height, width, kind, shifted, number, float(ours_off), float(twin_off))
                assert ours_off < close + 2 * twin_off, told
"""
ENCODER = """
import torch
from diffusers import AutoencoderKL
from bigdiff.models import norm
from bigdiff.models.encoders import moments
from bigdiff.models.halving import halved, moved
torch.manual_seed(0)
blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
vae = AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks).eval()
pixels = torch.rand(2, 3, 16, 24) * 2 - 1
half = halved(vae, "fp16")
with torch.inference_mode():
    right, plain = moments(vae, pixels), moments(half, pixels.half())
assert norm.fuse_alone(half, torch.device("cpu"), torch.float16) == ""
calls = []
kernels, count = norm.fused, lambda *given: calls.append(1) or kernels(*given)
norm.fused = count
with torch.inference_mode():
    fused = moments(half, pixels.half())
assert len(calls) == 2 * (2 + 2), len(calls)  # two blocks down and two in the middle, of two norms each
off = moved(fused, right), moved(plain, right)
assert 0 < off[0] < 2 * off[1], off
"""


def test_output_and_gradients_are_those_of_whole_precision() -> None:
    interpreted(NUMBERS)


def test_a_unet_has_the_same_gradients_under_the_same_names() -> None:
    network({"norm": "fused", "channels_last": True}, {"_GroupNormSiLUBackward": 16}, "float32")


def test_an_encoder_in_fp16_gives_the_same_moments() -> None:
    interpreted(ENCODER)


def test_a_device_without_the_kernels_keeps_torchs(world: World) -> None:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    before = unet(torch.ones(1, 3, 8, 8), 5).sample
    said = norm.fuse(unet, world)
    assert said.startswith("speed.norm=fused is left out: on cpu it does not run (")
    assert torch.equal(unet(torch.ones(1, 3, 8, 8), 5).sample, before)


def test_another_kind_of_block_stays_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "problem", lambda *_: "")
    monkeypatch.setattr(norm, "fused", norm.eager)
    torch.manual_seed(0)
    kinds = {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    x = torch.randn(2, 3, 8, 8)
    before = unet(x, 5).sample
    assert norm.fuse(unet, world) == "speed.norm=fused: 2 of 10 residual blocks are of another kind"
    assert torch.allclose(unet(x, 5).sample, before, atol=1e-6)
