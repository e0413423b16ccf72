"""The fused norm without a GPU: by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DModel

from bigdiff.models import norm
from bigdiff.runtime.world import World

ROOT = Path(__file__).resolve().parents[2]
# float64 operations, by norms, at sizes with one tile and several, whole and not, of groups of any width
NUMBERS = """
import torch
from torch import nn
from bigdiff.models import norm
torch.manual_seed(0)
for channels, groups, height, width in ((8, 4, 1, 1), (64, 32, 5, 7), (40, 4, 11, 13), (200, 10, 16, 20), (6, 6, 3, 3)):
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for shifted in (False, True):
            plain = nn.GroupNorm(groups, channels, 1e-5, dtype=torch.float64)
            with torch.no_grad():
                plain.weight.copy_(torch.randn(channels).to(kind))
                plain.bias.copy_(torch.randn(channels).to(kind))
            ours = nn.GroupNorm(groups, channels, 1e-5, dtype=kind)
            ours.load_state_dict(plain.state_dict())
            # means far from zero, where sums of squares would lose what is left
            x = (3 * torch.randn(2, channels, height, width) + 30 * torch.randn(2, channels, 1, 1)).to(kind)
            shift = (10 * torch.randn(2, channels)).to(kind) if shifted else None
            behind = torch.randn(2, channels, height, width).to(kind)
            wide = None if shift is None else shift.double()
            known = norm._gradients(norm.eager, plain, (x.double(), wide), behind.double())
            twin = norm._gradients(norm.eager, ours, (x, shift), behind)
            found = norm._gradients(norm.fused, ours, (x, shift), behind)
            assert found[0].is_contiguous(memory_format=torch.channels_last) or height * width == 1
            for number, (one, also, other) in enumerate(zip(found, twin, known, strict=True)):
                assert one.dtype == kind
                ours_off, twin_off = ((each.double() - other).norm() / other.norm() for each in (one, also))
                told = (channels, groups, height, width, kind, shifted, number, float(ours_off), float(twin_off))
                assert ours_off < close + 2 * twin_off, told
"""
NETWORK = """
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from bigdiff.models import agreement, norm
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import World
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=8, attention_head_dim=2,
)
network = Denoiser(unet, None, False).train()
noisy, target = torch.randn(2, 2, 2, 8, 8)
sample = Sample(noisy=noisy, timesteps=torch.tensor([3, 900]), text=torch.randn(2, 5, 8), target=target)
names = list(network.state_dict())
plain, known = agreement.gradients(network, sample), agreement.known(network, sample)
assert norm.fuse(unet, world) == ""
for checkpointed in (False, True):
    if checkpointed:
        unet.enable_gradient_checkpointing()
    found = agreement.gradients(network, sample)
    assert known.differs(found) == "", known.differs(found)
assert list(network.state_dict()) == names
norm.release(unet)
unet.disable_gradient_checkpointing()
again = agreement.gradients(network, sample)
assert all(torch.equal(one, plain.gradients[name]) for name, one in again.gradients.items())
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


def interpreted(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_output_and_gradients_are_those_of_whole_precision() -> None:
    interpreted(NUMBERS)


def test_a_unet_has_the_same_gradients_under_the_same_names() -> None:
    interpreted(NETWORK)


def test_a_device_without_the_kernels_keeps_torchs(world: World) -> None:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    before = unet(torch.ones(1, 3, 8, 8), 5).sample
    said = norm.fuse(unet, world)
    assert said.startswith("speed.norm=fused is left out: on cpu it does not run (")
    assert torch.equal(unet(torch.ones(1, 3, 8, 8), 5).sample, before)


def test_another_kind_of_block_stays_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "_problem", lambda *_: "")
    monkeypatch.setattr(norm, "fused", norm.eager)
    torch.manual_seed(0)
    kinds = {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    x = torch.randn(2, 3, 8, 8)
    before = unet(x, 5).sample
    assert norm.fuse(unet, world) == "speed.norm=fused: 2 of 10 residual blocks are of another kind"
    assert torch.allclose(unet(x, 5).sample, before, atol=1e-6)
