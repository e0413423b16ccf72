"""How many parameters a network has, counted on the meta device: no memory, no weights."""

import torch

from bigdiff.config.schema import UNet
from bigdiff.models.components import build_unet


def unet_parameters(unet: UNet, latent_size: int) -> int:
    """Parameters of `unet` on latents of `latent_size` a side.

    Raises:
        UsageError: when diffusers refuses the configuration.
    """
    with torch.device("meta"):
        network = build_unet(unet, latent_size)
    return sum(parameter.numel() for parameter in network.parameters())
