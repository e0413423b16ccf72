"""How many parameters a network has, counted on the meta device: no memory, no weights."""

import torch
from torch import nn

from bigdiff.config.schema import Stage, UNet
from bigdiff.models.autoencoder import build
from bigdiff.models.components import build_unet
from bigdiff.models.discriminator import PatchDiscriminator


def parameters(stage: Stage) -> dict[str, int]:
    """Of the networks that `stage` trains from its configuration, by name.

    Raises:
        UsageError: when diffusers refuses the configuration.
    """
    config = stage.model.autoencoder
    if config is None:
        return {"UNet": unet_parameters(stage.model.unet, stage.latent_size)}
    with torch.device("meta"):
        found = {"autoencoder": count(build(config, stage.resolution))}
        if config.disc_weight:
            found["discriminator"] = count(PatchDiscriminator(config.disc_channels, config.disc_layers))
    return found


def unet_parameters(unet: UNet, latent_size: int) -> int:
    """Parameters of `unet` on latents of `latent_size` a side.

    Raises:
        UsageError: when diffusers refuses the configuration.
    """
    with torch.device("meta"):
        return count(build_unet(unet, latent_size))


def count(network: nn.Module) -> int:
    """Of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())
