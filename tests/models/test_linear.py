"""fp8 linear layers: against exact arithmetic on the same rounded operands, and in a whole UNet."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.nn import functional

from bigdiff.config.load import load_stage
from bigdiff.config.speed import Speed
from bigdiff.models import agreement, linear, speed
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.network import network
from bigdiff.runtime.world import World

CPU = torch.device("cpu")
KINDS = [torch.float32, torch.bfloat16]


def denoiser(kind: torch.dtype = torch.float32, width: int = 16) -> Denoiser:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(width,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return Denoiser(unet, None, False).to(kind).train()


def sample() -> Sample:
    noisy, target = torch.randn(2, 2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))  # 10 rows, which are filled up to 16
    return Sample(noisy=noisy, timesteps=torch.tensor([3, 900]), text=text, target=target)


def rounded(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """By definition: to the nearest of 2^mantissa steps between powers of two, none smaller than the type's least."""
    bits, least = {linear.E4M3: (3, -6), linear.E5M2: (2, -14)}[kind]
    scale = 2.0 ** torch.floor(torch.log2(torch.finfo(kind).max / x.abs().max().double()))
    given = x.double() * scale
    exponent = torch.floor(torch.log2(given.abs().clamp(min=2.0**least)))
    step = 2.0 ** (exponent - bits)
    return torch.round(given / step) * step / scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [16, 10])
def test_products_are_those_of_the_rounded_operands(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 32) * 1e-3, torch.randn(48, 32) * 300
    added, behind = torch.randn(48) if bias else None, torch.randn(rows, 48) * 1e-9
    inputs = [one.requires_grad_() for one in (x, weight, added) if one is not None]
    out = linear.linear(x, weight, added)
    assert out.requires_grad and out.shape == (rows, 48)
    found = torch.autograd.grad(out, inputs, behind)
    of_x, of_weight = rounded(x.detach(), linear.E4M3), rounded(weight.detach(), linear.E4M3)
    of_out = rounded(behind, linear.E5M2)
    known = [
        of_x @ of_weight.t() + (0 if added is None else added.detach().double()),
        of_out @ of_weight,
        of_out.t() @ of_x,
    ]
    for one, other in zip((out.detach(), *found), [*known, behind.double().sum(0)], strict=False):
        assert float((one.double() - other).norm() / other.norm()) < 1e-6
    assert len(found) == (3 if bias else 2)


def test_views_are_laid_out_as_a_gpu_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    product = linear._product

    def looked_at(one: torch.Tensor, other: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        assert one.is_contiguous() and other.is_contiguous()
        return product(one, other, *more, **named)

    monkeypatch.setattr(linear, "_product", looked_at)
    torch.manual_seed(0)
    x, weight, behind = torch.randn(32, 16), torch.randn(48, 32), torch.randn(48, 16)
    found = []
    for given, after in ((x.t(), behind.t()), (x.t().contiguous(), behind.t().contiguous())):
        inputs = [given.detach().requires_grad_(), weight.clone().requires_grad_()]
        found.append(torch.autograd.grad(linear.linear(*inputs, None), inputs, after))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", [linear.E4M3, linear.E5M2])
def test_a_scale_is_a_power_of_two_and_no_number_goes_beyond_the_type(kind: torch.dtype) -> None:
    for largest in (1e-25, 3.7e-9, 1.0, 447.9, 448.1, 7e4, 1e30, 3e38):
        for given in KINDS:
            cast, scale = linear.scaled(torch.tensor([largest, -largest / 3, 0.0], dtype=given), kind)
            assert torch.isfinite(cast.float()).all()
            assert float(torch.frexp(scale)[0]) == 0.5
            assert torch.finfo(kind).max / 2.2 < float(cast.float().max()) <= torch.finfo(kind).max
    zeros, scale = linear.scaled(torch.zeros(4), kind)
    assert torch.equal(zeros.float() * scale, torch.zeros(4))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so_that_the_step_is_dropped(value: float, kind: torch.dtype) -> None:
    layer, x, behind = nn.Linear(16, 16, dtype=kind), torch.ones(16, 16, dtype=kind), torch.ones(16, 16, dtype=kind)
    behind[3, 4] = value
    linear.linear(x, layer.weight, layer.bias).backward(behind)
    assert not torch.isfinite(layer.weight.grad).any()
    x[3, 4] = value
    assert not torch.isfinite(linear.linear(x, layer.weight, layer.bias)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_has_no_gradient(kind: torch.dtype) -> None:
    layer = nn.Linear(16, 32, dtype=kind)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 3, 16, dtype=kind, requires_grad=True)
    linear.linear(x, layer.weight, layer.bias).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_unet_is_a_few_percent_off_and_plain_again_afterwards(
    world: World, kind: torch.dtype, checkpointing: bool
) -> None:
    built = denoiser(kind)
    names, plain = list(built.state_dict()), agreement.gradients(built, sample())
    known = agreement.known(built, sample())
    assert speed.apply(built, Speed(linear="fp8"), [], world) == []
    if checkpointing:
        built.unet.enable_gradient_checkpointing()
    found = agreement.gradients(built, sample())
    assert list(built.state_dict()) == names
    assert 1e-5 < abs(float(found.loss / known.exact.loss) - 1) < 0.05
    errors = agreement.distances(found, known.exact)
    weights = {name: error for name, error in errors.items() if "ff.net" in name and name.endswith("weight")}
    assert len(weights) == 8 and all(0.01 < error < 0.3 for error in weights.values())
    # in the wider type there is no fp8, so that a compiled network is held against the truth
    assert torch.equal(agreement.exact(built, sample()).loss, known.exact.loss)
    speed.reset(built)
    built.unet.disable_gradient_checkpointing()
    again = agreement.gradients(built, sample())
    assert all(torch.equal(one, plain.gradients[name]) for name, one in again.gradients.items())


def test_compiled_it_is_traced_whole_and_gives_the_same(world: World) -> None:
    torch.compiler.reset()
    built = denoiser(torch.bfloat16)
    speed.apply(built, Speed(linear="fp8"), [], world)
    plain = agreement.gradients(built, sample())
    assert speed.compiled(built, "blocks", [sample()], world, "aot_eager") == ""
    assert any(module._compiled_call_impl for module in built.modules())
    found = agreement.gradients(built, sample())
    assert torch.allclose(found.loss, plain.loss, rtol=1e-2)


def test_layers_that_do_not_fit_stay_and_are_told(world: World) -> None:
    built = denoiser(width=8)
    said = speed.apply(built, Speed(linear="fp8"), [], world)
    assert said == ["speed.linear=fp8 has no effect: none of 40 linear layers in transformer blocks fits it"]
    built = denoiser(width=16)
    built.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2] = nn.Linear(64, 20)
    assert speed.apply(built, Speed(linear="fp8"), [], world) == [
        "speed.linear=fp8: 1 of 40 layers have sides that are no multiples of 16"
    ]
    textless = UNet2DModel(
        down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), block_out_channels=(32,)
    )
    (line,) = speed.apply(Denoiser(textless, None, False), Speed(linear="fp8_wide"), [], world)
    assert line == "speed.linear=fp8_wide has no effect: none of 0 linear layers in transformer blocks fits it"


def test_the_wide_layers_of_stable_diffusion() -> None:
    layers = linear.linears(network(load_stage("512px")).denoiser.unet)
    assert len(layers) == 160 and all(linear.fits(layer) for layer in layers)
    wide = {(layer.in_features, layer.out_features) for layer in layers if linear.pays(layer)}
    assert wide == {(1280, 1280), (1280, 10240), (5120, 1280), (640, 5120), (2560, 640), (768, 1280)}


def test_a_gpu_without_fp8_and_a_wrong_product_keep_plain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    built = denoiser()
    plain = agreement.gradients(built, sample())
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
        patch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
        said = linear._problem([], torch.device("cuda"), torch.bfloat16)
        assert said == "NVIDIA A100 has no products of fp8; compute capability 8.9 and above have"
    for wrong, reason in ((halved, "computes something else"), (failing, "does not run (no such product)")):
        monkeypatch.setattr(linear, "_product", wrong)
        (line,) = speed.apply(built, Speed(linear="fp8"), [], replace(world))
        assert line.startswith("speed.linear=fp8 is left out: on cpu ") and reason in line
    found = agreement.gradients(built, sample())
    assert all(torch.equal(one, plain.gradients[name]) for name, one in found.gradients.items())


def halved(one: torch.Tensor, other: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return functional.linear(one.float(), other.float()) / 2


def failing(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("no such product")
