"""GEGLU by kernels without a GPU: by Triton's interpreter, in a process of its own."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.activations import GEGLU
from torch import nn
from triton_runs import interpreted

from bigdiff.models import checked, geglu
from bigdiff.runtime.world import World

# float64 operations, by norms; whole tiles and others, several and one
NUMBERS = """
import torch
from bigdiff.models import checked, geglu
torch.manual_seed(0)
for shape in ((1, 2), (3, 5, 80), (2, 9, 600), (8, 512)):
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        given = (4 * torch.randn(shape)).to(kind)  # gates up to where gelu is zero or its input
        behind = torch.randn(*shape[:-1], shape[-1] // 2).to(kind)
        known = checked.gradients(geglu.eager, [given.double()], behind.double())
        # as the layers around may lay them out
        turned = given.unsqueeze(-1).transpose(0, -1).contiguous().transpose(0, -1).squeeze(-1)
        for one in (given, turned):
            found = checked.gradients(geglu.fused, [one], behind)
            for ours, right in zip(found, known, strict=True):
                assert ours.dtype == kind and ours.shape == right.shape
                off = float((ours.double() - right).norm() / right.norm())
                assert off < close, (shape, kind, off)
"""


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(GEGLU(8, 12), nn.Linear(12, 8), GEGLU(8, 20))
    found.dtype = torch.float32
    return found


def test_output_and_gradients_are_those_of_whole_precision() -> None:
    interpreted(NUMBERS)


def test_the_twin_is_diffusers() -> None:
    layer, x = GEGLU(8, 12), torch.randn(2, 3, 8)
    assert torch.equal(geglu.eager(layer.proj(x)), layer(x))


def test_a_device_without_the_kernels_keeps_torchs(world: World) -> None:
    network, x = layers(), torch.randn(2, 3, 8)
    before = network(x)
    said = geglu.fuse(network, world)
    assert said.startswith("speed.transformer=fused is left out for GEGLU: on cpu it does not run (")
    assert torch.equal(network(x), before)


def test_every_layer_takes_the_kernels_until_they_are_released(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "problem", lambda *_: "")
    monkeypatch.setattr(geglu, "fused", lambda given: geglu.eager(given) + 1)
    network, x = layers(), torch.randn(2, 3, 8)
    before = network[0](x), network[2](x)
    assert geglu.fuse(network, world) == ""
    assert torch.equal(network[0](x), before[0] + 1) and torch.equal(network[2](x), before[1] + 1)
    geglu.release(network)
    assert torch.equal(network[0](x), before[0]) and torch.equal(network[2](x), before[1])


def test_a_unet_without_geglu_says_so(world: World) -> None:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    assert geglu.fuse(unet, world) == "speed.transformer=fused: this UNet has no GEGLU"
