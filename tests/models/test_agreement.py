"""The measure by which another way to compute a network is believed."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from bigdiff.models import agreement
from bigdiff.models.agreement import Known, Pass, Sample
from bigdiff.models.denoiser import Denoiser

UNET = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def denoiser(text: bool = True) -> Denoiser:
    torch.manual_seed(0)
    if not text:
        downs, ups = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        return Denoiser(
            UNet2DModel(down_block_types=downs, up_block_types=ups, attention_head_dim=4, **UNET), None, False
        )
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        **UNET,
    )
    return Denoiser(unet, None, False)


def sample(text: bool = True) -> Sample:
    random = torch.Generator().manual_seed(1)
    noisy, target = torch.randn(2, 3, 2, 8, 8, generator=random)
    states = torch.randn(3, 5, 8, generator=random) if text else None
    return Sample(noisy=noisy, timesteps=torch.tensor([3, 500, 999]), text=states, target=target)


@pytest.mark.parametrize("text", [True, False])
def test_reversed_rows_are_another_input_with_the_same_gradients(text: bool) -> None:
    network, given = denoiser(text), sample(text)
    given = replace(given, noisy=given.noisy.contiguous(memory_format=torch.channels_last))
    turned = agreement.reversed_rows(given)
    assert not torch.equal(turned.noisy, given.noisy) and turned.noisy.stride() == given.noisy.stride()
    assert agreement.known(network, given).differs(agreement.gradients(network, turned)) == ""


@pytest.mark.parametrize("text", [True, False])
def test_exact_gradients_are_those_of_a_whole_batch_in_double_precision(text: bool) -> None:
    network, given = denoiser(text), sample(text)
    found = agreement.exact(network, given)
    whole = copy.deepcopy(network).double()
    loss = (whole(given.noisy, given.timesteps, given.text) - given.target).pow(2).mean()
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=0)
    weights = whole.trained()
    assert found.gradients.keys() == weights.keys()
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-9, atol=1e-15)
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    assert all(one.grad is None for one in network.parameters())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_plain_network_agrees_with_itself_and_is_as_near_as_its_type_allows(kind: torch.dtype) -> None:
    network, given = denoiser().to(kind), sample()
    known = agreement.known(network, given)
    assert known.differs(agreement.gradients(network, given)) == ""
    errors = agreement.distances(known.plain, known.exact)
    assert max(errors.values()) < (1e-5 if kind == torch.float32 else 0.5)
    assert min(errors.values()) > 0  # two types were really compared


def test_the_distance_of_all_gradients_together_is_that_of_one_long_vector() -> None:
    network, given = denoiser().to(torch.bfloat16), sample()
    exact, found = agreement.exact(network, given), agreement.gradients(network, given)
    one, other = (torch.cat([each.flatten().double() for each in way.gradients.values()]) for way in (found, exact))
    assert agreement.apart(found, exact) == pytest.approx(float((one - other).norm() / other.norm()), rel=1e-5)
    assert agreement.apart(exact, exact) == 0


def test_no_input_is_rounded_against_the_plain_network() -> None:
    network = denoiser(text=False).to(torch.bfloat16)
    given = sample(text=False)
    rounded = replace(given, noisy=given.noisy.bfloat16().float())
    one, other = agreement.exact(network, given), agreement.exact(network, rounded)
    assert torch.equal(one.loss, other.loss)
    assert all(torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients)


def spoiled(one: Pass, name: str, factor: float) -> Pass:
    return replace(one, gradients={**one.gradients, name: one.gradients[name] * factor})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 2.0, math.nan])
def test_one_wrong_gradient_is_found_and_named(kind: torch.dtype, factor: float) -> None:
    network, given = denoiser().to(kind), sample()
    known, found = agreement.known(network, given), agreement.gradients(network, given)
    for name in ("unet.conv_in.weight", "unet.mid_block.resnets.0.norm1.bias", "unet.conv_out.bias"):
        said = known.differs(spoiled(found, name, factor))
        assert f"of {len(found.gradients)} gradients 1 are wrong" in said and name in said


@pytest.mark.parametrize("loss", [1.5, math.nan])
def test_a_wrong_loss_is_found(loss: float) -> None:
    network, given = denoiser(), sample()
    known, found = agreement.known(network, given), agreement.gradients(network, given)
    assert "its loss is" in known.differs(replace(found, loss=found.loss * loss))


def test_a_gradient_that_is_rounding_alone_is_not_held_against_anybody() -> None:
    """Attention's softmax does not change when all scores of a row grow alike, as they do with the bias of the keys."""
    network, given = denoiser(text=False), sample(text=False)
    known = agreement.known(network, given)
    name = "unet.mid_block.attentions.0.to_k.bias"
    assert float(known.exact.gradients[name].norm()) < 1e-12 * float(
        known.exact.gradients["unet.conv_in.weight"].norm()
    )
    assert known.differs(spoiled(agreement.gradients(network, given), name, -3.0)) == ""


def test_twice_the_plain_error_and_the_tolerance_are_the_bound() -> None:
    exact = Pass(loss=torch.tensor(1.0), gradients={"a": torch.ones(4)})
    plain = Pass(loss=torch.tensor(1.0), gradients={"a": torch.full((4,), 1.05)})
    known = Known(plain=plain, exact=exact, tolerance=0.01)
    for error, agrees in ((0.109, True), (-0.109, True), (0.111, False), (-0.111, False)):
        said = known.differs(Pass(loss=torch.tensor(1.0), gradients={"a": torch.full((4,), 1 + error)}))
        assert (said == "") is agrees, error
