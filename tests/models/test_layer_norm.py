"""LayerNorm by kernels without a GPU: by Triton's interpreter, in a process of its own."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from triton_runs import interpreted

from bigdiff.engine.precision import sum_in_fp32
from bigdiff.models import checked, layer_norm
from bigdiff.runtime.world import World

# float64 operations, by norms; rows of one program and of several, of one tile and of more, filled and not
NUMBERS = """
from functools import partial
import torch
from bigdiff.models import checked, layer_norm, layer_norm_kernels
torch.manual_seed(0)
whole = [(1024, shape) for shape in ((1, 8), (3, 87, 40), (2, 9, 320))]
for most, shape in (*whole, (2, (70, 640)), (2, (3, 2000)), (1, (2, 6))):
    layer_norm_kernels.PROGRAMS = most
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        # means far from zero, where sums of squares would lose what is left
        x = (3 * torch.randn(shape) + 30 * torch.randn(*shape[:-1], 1)).to(kind)
        given = [x, torch.randn(shape[-1]).to(kind), torch.randn(shape[-1]).to(kind)]
        behind, wide = torch.randn(shape).to(kind), [one.double() for one in given]
        known = checked.gradients(partial(layer_norm.eager, 1e-5), wide, behind.double())
        # as a convolution in NCHW leaves its pixels
        turned = [x.transpose(0, -1).contiguous().transpose(0, -1), *given[1:]]
        for one in (given, turned):
            found = checked.gradients(partial(layer_norm.fused, 1e-5), one, behind)
            for number, (ours, right) in enumerate(zip(found, known, strict=True)):
                assert ours.dtype == kind and ours.shape == right.shape
                off = float((ours.double() - right).norm() / right.norm())
                assert off < close, (most, shape, kind, number, off)
# thousands of rows of bf16, which torch sums in bf16 on a CPU
x, weight, bias = torch.randn(8192, 8).bfloat16(), torch.ones(8).bfloat16(), torch.zeros(8).bfloat16()
behind = (1 + torch.randn(8192, 8)).bfloat16()
found = checked.gradients(partial(layer_norm.fused, 1e-5), [x, weight, bias], behind)
assert torch.allclose(found[3].double(), behind.double().sum(0), rtol=4e-3)
"""


def network(kind: torch.dtype = torch.float32) -> nn.Sequential:
    """Two blocks, and a norm that is in none."""
    torch.manual_seed(0)
    found = nn.Sequential(*(BasicTransformerBlock(8, 2, 4, cross_attention_dim=6) for _ in range(2)), nn.LayerNorm(8))
    found.dtype = kind
    return found.to(kind)


def test_output_and_gradients_are_those_of_whole_precision() -> None:
    interpreted(NUMBERS)


def test_a_device_without_the_kernels_keeps_torchs(world: World) -> None:
    blocks, x = network(), torch.randn(2, 3, 8)
    before = blocks[0].norm1(x)
    said = layer_norm.fuse(blocks, world)
    assert said.startswith("speed.transformer=fused is left out for LayerNorm: on cpu it does not run (")
    assert torch.equal(blocks[0].norm1(x), before)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_blocks_norms_take_the_kernels_until_they_are_released(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    def marked(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm.eager(eps, x, weight, bias) + 1

    monkeypatch.setattr(checked, "problem", lambda *_: "")
    monkeypatch.setattr(layer_norm, "fused", marked)
    blocks, x = network(kind), torch.randn(2, 3, 8).to(kind)
    if kind == torch.bfloat16:
        sum_in_fp32(blocks)  # puts a forward pass of its own on each norm
    norms = [norm for block in blocks[:2] for norm in (block.norm1, block.norm2, block.norm3)]
    kept = [norm.forward for norm in norms]
    before, alone = [norm(x) for norm in norms], blocks[2](x)
    assert layer_norm.fuse(blocks, world) == ""
    assert layer_norm.fuse(blocks, world) == ""  # twice is once
    assert all(torch.allclose(norm(x), one + 1, atol=1e-2) for norm, one in zip(norms, before, strict=True))
    assert torch.equal(blocks[2](x), alone)
    layer_norm.release(blocks)
    assert all(torch.equal(norm(x), one) for norm, one in zip(norms, before, strict=True))
    assert [norm.forward for norm in norms] == kept
    assert all(("forward" in norm.__dict__) is (kind == torch.bfloat16) for norm in norms)


def test_a_network_without_such_norms_says_so(world: World) -> None:
    plain = BasicTransformerBlock(8, 2, 4, norm_elementwise_affine=False)
    plain.dtype = torch.float32
    said = layer_norm.fuse(plain, world)
    assert said == "speed.transformer=fused: this UNet has no LayerNorm in a transformer block"
