"""The mapping against diffusers' own conversion, which goes one way, and against itself."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.config.schema import UNet
from bigdiff.models import components, original
from bigdiff.models.original import Places
from bigdiff.models.original_settings import attends

SMALL = UNet(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=2,
)
UNETS = {
    "small": SMALL,
    "deep": replace(
        SMALL, layers_per_block=3, down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3
    ),
    "flat": replace(
        SMALL,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ),
}
Shapes = dict[str, tuple[int, ...]]


def shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose tensors all differ."""
    module = make()
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module


def autoencoder(levels: int = 3, layers: int = 2, attention: bool = True) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 64, 96)[:levels],
        layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=attention,
    )


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def round_trip(module: nn.Module, places: Places) -> dict[str, Tensor]:
    """The file's tensors, of which each network's come back by the mapping itself."""
    there = original.to_original(places, module.state_dict())
    assert len(there) == len(places)  # no two at one place
    back = original.from_original(places, {**there, "model_ema.decay": torch.zeros(())}, shapes(module))
    assert same(back, module.state_dict())
    assert same(original.to_original(places, back), there)
    return there


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_a_unet_goes_there_and_back_and_diffusers_agrees(config: UNet) -> None:
    unet = seeded(lambda: components.build_unet(config, 8))
    there = round_trip(unet, original.unet_places(shapes(unet), attends(config), config.layers_per_block))
    assert same(convert_ldm_unet_checkpoint(there, dict(unet.config)), unet.state_dict())
    assert all(name.startswith("model.diffusion_model.") for name in there)


@pytest.mark.parametrize(("levels", "layers", "attention"), [(4, 2, True), (3, 1, False), (1, 1, True)])
def test_an_autoencoder_goes_there_and_back_and_diffusers_agrees(levels: int, layers: int, attention: bool) -> None:
    vae = seeded(lambda: autoencoder(levels, layers, attention))
    there = round_trip(vae, original.vae_places(shapes(vae), levels, layers))
    assert same(convert_ldm_vae_checkpoint(there, dict(vae.config)), vae.state_dict())
    if attention:
        width = vae.config["block_out_channels"][-1]
        assert there["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (width, width, 1, 1)
        assert there["first_stage_model.encoder.mid.attn_1.norm.weight"].shape == (width,)


def test_a_text_encoder_goes_there_and_back_and_diffusers_agrees() -> None:
    sizes = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = seeded(lambda: CLIPTextModel(sizes))
    places = original.text_places(shapes(text))
    there = round_trip(text, places)
    converted = convert_ldm_clip_checkpoint(there)
    assert same({name.removeprefix("text_model."): one for name, one in converted.items()}, text.state_dict())
    wrapped = original.text_places({f"text_model.{name}": shape for name, shape in shapes(text).items()})
    assert {place.name for place in wrapped.values()} == there.keys()  # transformers before 5.6


def test_diffusers_finds_each_of_sd_v1s_tensors_by_our_names() -> None:
    """All values are tested in tests/export/test_original.py: here are none."""
    with torch.device("meta"):
        unet = components.build_unet(UNet(), 64)
    places = original.unet_places(shapes(unet), attends(UNet()), 2)
    there = original.to_original(places, unet.state_dict())
    found = convert_ldm_unet_checkpoint(there, dict(unet.config))
    assert len(found) == len(places) == len(there) == 686
    assert all(found[name] is there[place.name] for name, place in places.items())


def test_the_names_of_sd_v1_are_the_published_ones() -> None:
    """Some of v1-5-pruned-emaonly's, one of each kind."""
    with torch.device("meta"):
        unet, vae = components.build_unet(UNet(), 64), autoencoder(levels=4)
    places = original.unet_places(shapes(unet), attends(UNet()), 2)
    expected = {
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "conv_in.weight": "input_blocks.0.0.weight",
        "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.0.op.bias",
        "down_blocks.1.attentions.0.proj_in.weight": "input_blocks.4.1.proj_in.weight",
        "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "mid_block.resnets.1.norm1.weight": "middle_block.2.in_layers.0.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.bias": (
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias"
        ),
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "conv_norm_out.weight": "out.0.weight",
        "conv_out.bias": "out.2.bias",
    }
    assert {name: places[name].name for name in expected} == {
        name: f"model.diffusion_model.{there}" for name, there in expected.items()
    }
    places = original.vae_places(shapes(vae), 4, 2)
    assert len(places) == 248
    assert (
        places["decoder.up_blocks.0.resnets.2.conv1.bias"].name == "first_stage_model.decoder.up.3.block.2.conv1.bias"
    )
    assert original.vae_places(shapes(vae), 4, 2, "")["quant_conv.bias"].name == "quant_conv.bias"
