"""bf16 where it is asked for, and LayerNorms that sum in fp32."""

import copy
from pathlib import Path

import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.engine import precision


def test_precision_follows_the_device(stage_file: Path) -> None:
    stage = load_stage(str(stage_file))
    assert not precision.bf16(stage, torch.device("cpu"))
    assert precision.bf16(stage, torch.device("cuda", 0))
    assert precision.bf16(load_stage(str(stage_file), ["engine.precision=bf16"]), torch.device("cpu"))
    assert not precision.bf16(load_stage(str(stage_file), ["engine.precision=fp32"]), torch.device("cuda", 0))


def gradients(norm: torch.nn.Module, given: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    source = given.clone().requires_grad_()
    output = norm(source)
    output.backward(upstream)
    return [output.detach().double(), *(one.grad.double() for one in (source, norm.weight, norm.bias))]


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_norms_gradients_are_summed_in_fp32(affine: bool) -> None:
    random = torch.Generator().manual_seed(0)
    given, upstream = (torch.randn(4096, 64, generator=random).bfloat16() for _ in range(2))
    norm = torch.nn.Sequential(torch.nn.LayerNorm(64, elementwise_affine=affine).bfloat16())
    if not affine:
        expected = norm(given)
        precision.sum_in_fp32(norm)
        torch.testing.assert_close(norm(given), expected, rtol=2**-7, atol=0)
        return
    exact = gradients(copy.deepcopy(norm)[0].double(), given.double(), upstream.double())
    before = gradients(copy.deepcopy(norm)[0], given, upstream)
    precision.sum_in_fp32(norm)
    after = gradients(norm[0], given, upstream)
    errors, earlier = (
        [float((one - other).norm() / other.norm()) for one, other in zip(told, exact, strict=True)]
        for told in (after, before)
    )
    assert max(errors) < 3e-3  # one rounding
    assert max(earlier[2:]) > 3e-2  # what it is there for; when this fails, torch has mended its kernel
    assert after[0].allclose(before[0], rtol=2**-7)
    assert norm[0].weight.grad is not None
    assert norm[0].weight.grad.dtype == torch.bfloat16
