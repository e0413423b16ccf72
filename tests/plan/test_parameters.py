import pytest
import torch
from diffusers import UNet2DConditionModel

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import UNet
from bigdiff.plan.parameters import parameters, unet_parameters


@pytest.mark.parametrize("name", ["256px", "512px", "512px-aesthetics", "512px-cfg"])
def test_sd_v1_has_its_published_size(name: str) -> None:
    stage = load_stage(name)
    assert unet_parameters(stage.model.unet, stage.latent_size) == 859_520_964


def test_the_count_is_that_of_the_real_network() -> None:
    small = UNet(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )
    real = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )
    assert unet_parameters(small, 8) == sum(parameter.numel() for parameter in real.parameters())
    assert torch.empty(0).device.type == "cpu"  # the meta device is left again


def test_an_impossible_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.unet"):
        unet_parameters(UNet(down_block_types=("NoSuchBlock",) * 4), 64)


def test_a_stage_names_the_networks_it_trains() -> None:
    assert parameters(load_stage("512px")) == {"UNet": 859_520_964}
    found = {"autoencoder": 83_653_863, "discriminator": 2_765_633}
    assert parameters(load_stage("kl-f8")) == found
    assert list(parameters(load_stage("kl-f8", ["model.autoencoder.disc_weight=0"]))) == ["autoencoder"]
