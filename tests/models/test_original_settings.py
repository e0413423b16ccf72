from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet
from bigdiff.models import components
from bigdiff.models.original_settings import attends, unet_parameters, vae_parameters

SMALL = UNet(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=4,
)
# configs/stable-diffusion/v1-inference.yaml of CompVis/stable-diffusion
PUBLISHED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}


def vae(**settings: Any) -> AutoencoderKL:
    usual = {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    with torch.device("meta"):
        return AutoencoderKL(**{**usual, **settings})


def test_sd_v1_is_told_as_published() -> None:
    assert unet_parameters(UNet()) == PUBLISHED
    assert attends(UNet()) == (True, True, True, False)


@pytest.mark.parametrize("config", [UNet(), SMALL], ids=["sd-v1", "small"])
def test_diffusers_reads_our_unets_back(config: UNet) -> None:
    told = {"unet_config": {"params": unet_parameters(config)}, "first_stage_config": {"params": {"ddconfig": {}}}}
    told["first_stage_config"]["params"]["ddconfig"] = vae_parameters(vae().config, 64)["ddconfig"]
    found = create_unet_diffusers_config_from_ldm({"model": {"params": told}}, {}, image_size=64)
    wanted = components.unet_config(config, 16)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    assert {key: found.get(key, 32) for key in plain} == plain  # norm_num_groups is not told: it is always 32


def test_diffusers_reads_our_autoencoders_back() -> None:
    source = vae(layers_per_block=1, latent_channels=8, sample_size=64)
    told = {"first_stage_config": {"params": vae_parameters(source.config, 64)}, "scale_factor": 0.5}
    found = create_vae_diffusers_config_from_ldm({"model": {"params": told}}, {}, image_size=64)
    assert found.pop("scaling_factor") == 0.5
    for key, value in found.items():
        own = source.config[key]
        assert value == (list(own) if isinstance(own, tuple) else own)
    assert vae_parameters(vae(mid_block_add_attention=False).config, 64)["ddconfig"]["attn_type"] == "none"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(SMALL, norm_num_groups=16), "norm_num_groups=16, and the original code has 32"),
        (replace(SMALL, attention_head_dim=5), "attention_head_dim=5 does not divide"),
        (replace(SMALL, block_out_channels=(64, 96)), r"widths \[64, 96\]"),
        (replace(SMALL, cross_attention_dim=0), "takes no text"),
        (replace(SMALL, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")), "other levels down than up"),
        (replace(SMALL, down_block_types=("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D")), "ResnetDownsample"),
    ],
)
def test_a_unet_that_the_original_code_has_not_is_refused(config: UNet, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        unet_parameters(config)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups=16"),
        ({"shift_factor": 0.1}, r"shift_factor=0\.1"),
        ({"use_quant_conv": False}, "use_quant_conv=False"),
        ({"act_fn": "relu"}, "act_fn=relu"),
        ({"block_out_channels": (64, 96, 96)}, r"widths \[64, 96, 96\]"),
    ],
)
def test_an_autoencoder_that_the_original_code_has_not_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        vae_parameters(vae(**settings).config, 64)
