"""The module that is trained: the UNet, and the text encoder that conditions it."""

from contextlib import nullcontext

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from bigdiff.models.encoders import text_states


class Denoiser(nn.Module):
    """eps or v of a noisy latent, given its timestep and its caption's token ids.

    The text encoder is frozen unless `train_text`: SD 1.x keeps it as it is (Rombach et al. 2022).
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, train_text: bool) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.train_text = train_text
        self.text_encoder.requires_grad_(train_text)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w], int64 [B] and int64 [B, L] -> prediction [B, C, h, w] in the network's own type."""
        with nullcontext() if self.train_text else torch.no_grad():
            states = text_states(self.text_encoder, tokens)
        kind = self.unet.dtype
        prediction: torch.Tensor = self.unet(noisy.to(kind), timesteps, states.to(kind), return_dict=False)[0]
        return prediction

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name ("unet.conv_in.weight"), in a fixed order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
