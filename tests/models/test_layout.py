"""channels_last through a whole UNet whose weights are not."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from bigdiff.models import agreement, layout
from bigdiff.models.agreement import Sample
from bigdiff.models.components import AnyUNet
from bigdiff.models.denoiser import Denoiser


def unet(kind: str) -> AnyUNet:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16)}
    more = {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    if kind == "without text":
        downs, ups = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        return UNet2DModel(down_block_types=downs, up_block_types=ups, **sizes, **more)
    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        use_linear_projection=kind == "SD 2",
        **sizes,
        **more,
    )


def sample(kind: str) -> Sample:
    random = torch.Generator().manual_seed(1)
    noisy, target = torch.randn(2, 2, 2, 8, 8, generator=random)
    text = None if kind == "without text" else torch.randn(2, 5, 8, generator=random)
    laid = noisy.contiguous(memory_format=torch.channels_last)
    return Sample(noisy=laid, timesteps=torch.tensor([3, 900]), text=text, target=target)


def lost(network: AnyUNet, given: Sample) -> int:
    """Outputs of single layers that are pictures and not channels_last."""
    found: list[bool] = []

    def look(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            found.append(not output.is_contiguous(memory_format=torch.channels_last))

    hooks = [layer.register_forward_hook(look) for layer in network.modules() if not list(layer.children())]
    agreement.gradients(Denoiser(network, None, False), given)
    for hook in hooks:
        hook.remove()
    assert len(found) > 30
    return sum(found)


@pytest.mark.parametrize("kind", ["SD 1", "SD 2", "without text"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_keeps_it_and_the_gradients_stay(kind: str, checkpointing: bool) -> None:
    network, given = unet(kind), sample(kind)
    if checkpointing:
        network.enable_gradient_checkpointing()
    denoiser = Denoiser(network, None, False).train()
    known, names = agreement.known(denoiser, given), list(network.state_dict())
    assert lost(network, given) > 10  # what it is there for; when this fails, diffusers has mended its blocks
    layout.keep(network)
    assert lost(network, given) == 0
    assert known.differs(agreement.gradients(denoiser, given)) == ""
    assert list(network.state_dict()) == names
    assert all(weight.is_contiguous() for weight in network.parameters())


def test_it_can_be_undone() -> None:
    network, given = unet("SD 1").train(), sample("SD 1")
    fresh = copy.deepcopy(network)
    layout.keep(network)
    layout.release(network)
    assert lost(network, given) == lost(fresh, given)
    assert all(module.training for module in network.modules())
    one, other = (agreement.gradients(Denoiser(found, None, False), given) for found in (network, fresh))
    assert all(torch.equal(gradient, other.gradients[name]) for name, gradient in one.gradients.items())


def test_a_copy_computes_with_its_own_weights() -> None:
    """A bound method must not lead back to the original."""
    network, given = unet("SD 1"), sample("SD 1")
    layout.keep(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    (output,) = twin(given.noisy, given.timesteps, given.text, return_dict=False)
    assert float(output.detach().abs().max()) > 0.1
