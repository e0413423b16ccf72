"""A run of small networks that the original code has: 32 groups in every normalisation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from bigdiff.models.denoiser import Denoiser

SIZES = (
    "model.unet.latent_channels=4",
    "model.unet.block_out_channels=[32,64]",
    "model.unet.norm_num_groups=32",
    "model.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
    "model.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
)


@pytest.fixture(scope="session")
def latents_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with 32 groups, a factor of 2 and 4 channels."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(1)
    AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.3,
        sample_size=8,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def grouped(trained: Callable[..., Denoiser], latents_of_four: Path) -> Callable[..., Denoiser]:
    """`trained`, of networks that the original code has."""

    def make(runs: Path, *overrides: str) -> Denoiser:
        return trained(runs, *SIZES, f"model.vae.source={latents_of_four}", *overrides)

    return make
