"""Units of real UNets, computed again one by one and together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.models import agreement, checkpointing
from bigdiff.models.agreement import Sample
from bigdiff.models.components import AnyUNet, build_unet
from bigdiff.models.denoiser import Denoiser, build_denoiser

NAMES = {
    "text": ("mid_block.attentions.0", "down_blocks.0", "up_blocks", "down_blocks.0.resnets.0,up_blocks.1.attentions"),
    "no text": ("mid_block", "down_blocks.1.resnets", "up_blocks.0,up_blocks.1.resnets.1", "down_blocks"),
}


def unet(kind: str) -> AnyUNet:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16)}
    more = {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    if kind == "no text":
        downs, ups = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        return UNet2DModel(down_block_types=downs, up_block_types=ups, **sizes, **more).train()
    downs, ups = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return UNet2DConditionModel(
        down_block_types=downs, up_block_types=ups, cross_attention_dim=8, **sizes, **more
    ).train()


def sample(kind: str) -> Sample:
    random = torch.Generator().manual_seed(1)
    noisy, target = torch.randn(2, 2, 2, 8, 8, generator=random)
    text = None if kind == "no text" else torch.randn(2, 5, 8, generator=random)
    return Sample(noisy=noisy, timesteps=torch.tensor([3, 900]), text=text, target=target)


@contextmanager
def calls(network: AnyUNet) -> Iterator[dict[str, int]]:
    """How often each unit is computed."""
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        def once(*_: object) -> None:
            found[name] = found.get(name, 0) + 1

        return once

    hooks = [unit.register_forward_pre_hook(count(name)) for name, unit in checkpointing.units(network).items()]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", ["text", "no text"])
def test_the_units_are_all_that_diffusers_hands_to_its_function(kind: str) -> None:
    network, seen = unet(kind), list[nn.Module]()

    def visit(unit: nn.Module, *arguments: Any) -> Any:
        seen.append(unit)
        return unit(*arguments)

    network.enable_gradient_checkpointing(visit)
    agreement.gradients(Denoiser(network, None, False), sample(kind))
    assert {id(one) for one in seen} == {id(one) for one in checkpointing.units(network).values()}
    assert len(seen) == len(checkpointing.units(network))


@pytest.mark.parametrize(("kind", "names"), [(kind, names) for kind, some in NAMES.items() for names in some])
def test_loss_and_each_gradient_stay_and_only_what_is_named_is_computed_again(kind: str, names: str) -> None:
    network, given = unet(kind), sample(kind)
    denoiser = Denoiser(network, None, False)
    plain = agreement.gradients(denoiser, given)
    again = checkpointing.chosen(network, names)
    checkpointing.recompute(network, again)
    with calls(network) as counted:
        found = agreement.gradients(denoiser, given)
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-5, atol=0)
    assert found.gradients.keys() == plain.gradients.keys()
    for name, known in plain.gradients.items():
        bound = 1e-5 * float(known.abs().max())
        torch.testing.assert_close(found.gradients[name], known, rtol=1e-5, atol=bound)
    assert counted == {name: 1 + (name in again) for name in checkpointing.units(network)}
    assert 0 < len(again) < len(counted)


def test_all_of_it_is_what_diffusers_does_and_none_is_the_plain_network() -> None:
    network, given = unet("text"), sample("text")
    denoiser = Denoiser(network, None, False)
    network.enable_gradient_checkpointing()
    with calls(network) as theirs:
        agreement.gradients(denoiser, given)
    for how, times in ((True, 2), (False, 1), ("auto", 1)):
        checkpointing.recompute(network, checkpointing.chosen(network, how))
        assert network.is_gradient_checkpointing is (times == 2)
        with calls(network) as ours:
            agreement.gradients(denoiser, given)
        assert set(ours.values()) == {times}
    assert set(theirs.values()) == {2}


def test_a_visit_sees_each_unit_and_leaves_the_switches_as_they_were() -> None:
    network, given, seen = unet("text"), sample("text"), list[nn.Module]()
    checkpointing.recompute(network, checkpointing.chosen(network, "down_blocks"))

    def visit(unit: nn.Module, *arguments: Any) -> Any:
        seen.append(unit)
        return unit(*arguments)

    with checkpointing.visited(network, visit):
        agreement.gradients(Denoiser(network, None, False), given)
    assert len(seen) == len(checkpointing.units(network))
    with calls(network) as counted:
        agreement.gradients(Denoiser(network, None, False), given)
    assert len(seen) == len(checkpointing.units(network))
    assert counted == {name: 1 + name.startswith("down_blocks") for name in counted}


def test_names_are_folded_to_what_reads_back_as_the_same_units() -> None:
    with torch.device("meta"):
        network = build_unet(load_stage("256px").model.unet, 32)
    every = tuple(checkpointing.units(network))
    assert len(every) == 37  # 22 residual blocks but the middle's first, 16 transformer blocks
    for names in ("up_blocks.3", "mid_block", "down_blocks.0.resnets,up_blocks.1.attentions.2", every[3]):
        found = checkpointing.chosen(network, names)
        assert checkpointing.chosen(network, ",".join(checkpointing.folded(found, every))) == found
    assert checkpointing.folded(checkpointing.chosen(network, "down_blocks.0.resnets"), every) == (
        "down_blocks.0.resnets",
    )
    sides = {f"{side}_blocks.{at}" for side in ("down", "up") for at in range(4)}
    assert set(checkpointing.folded(every, every)) == {*sides, "mid_block"}


def test_an_unknown_name_is_refused_with_those_that_are_there(toy: Path) -> None:
    for name in ("down_blocks.9", "conv_in", "mid_block.resnets.0", "down_blocks.0.resnets.01", "all"):
        stage = load_stage(str(toy / "stage.yaml"), [f"engine.gradient_checkpointing=up_blocks,{name}"])
        with pytest.raises(UsageError, match=f"has no unit {name} that can be recomputed; use true, false, auto, or"):
            build_denoiser(stage, None)
