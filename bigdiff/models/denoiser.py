"""The module that is trained: the UNet, and the text encoder that conditions it, if any."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from diffusers import UNet2DModel
from torch import nn
from transformers import CLIPTextModel

from bigdiff.config.schema import Stage
from bigdiff.models import checkpointing, learning
from bigdiff.models.components import AnyUNet, build_unet
from bigdiff.models.encoders import text_states


def part(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those of one network ("unet."), by its own names."""
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}


class Denoiser(nn.Module):
    """eps, v or x_0 of a noisy latent, given its timestep and its caption, if it has one.

    The text encoder is frozen unless `train_text`: SD 1.x keeps it as it is (Rombach et al. 2022).
    """

    def __init__(self, unet: AnyUNet, text_encoder: CLIPTextModel | None, train_text: bool) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.train_text = train_text
        if text_encoder is not None:
            text_encoder.requires_grad_(train_text)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, h, w], int64 [B] and the text -> prediction [B, C, h, w] in the network's own type.

        `text` is int64 token ids [B, L], or the text encoder's states [B, L, D] for them, or None without text.
        """
        kind = self.unet.dtype
        if text is None:
            assert isinstance(self.unet, UNet2DModel), "a UNet of text is given a text"
            alone: torch.Tensor = self.unet(noisy.to(kind), timesteps, return_dict=False)[0]
            return alone
        states = text if text.is_floating_point() else self.states(text)
        prediction: torch.Tensor = self.unet(noisy.to(kind), timesteps, states.to(kind), return_dict=False)[0]
        return prediction

    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        """The text encoder's states [B, L, D] of int64 token ids [B, L]; with a gradient where it is trained."""
        assert self.text_encoder is not None, "tokens need a text encoder"
        with nullcontext() if self.train_text else torch.no_grad():
            return text_states(self.text_encoder, tokens)

    def freeze(self, patterns: Sequence[str]) -> None:
        """Let the parameters that match keep their values; `*` in a pattern stands for dots, too.

        Raises:
            UsageError: for a pattern that matches nothing that learns, or when nothing is left to learn.
        """
        learning.freeze(self.trained(), patterns)

    def frozen_unet(self) -> dict[str, torch.Tensor]:
        """Copies of the UNet's parameters that keep their values, by name ("unet.conv_in.weight")."""
        return {
            name: one.detach().clone()
            for name, one in self.named_parameters()
            if name.startswith("unet.") and not one.requires_grad
        }

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name ("unet.conv_in.weight"), in a fixed order."""
        return learning.trained(self)


def build_denoiser(stage: Stage, text_encoder: CLIPTextModel | None) -> Denoiser:
    """The trained module with seeded random weights; a run before may give it others.

    With engine.gradient_checkpointing=auto it recomputes nothing yet: bigdiff.models.recomputing chooses.

    Raises:
        UsageError: for a UNet that cannot be built, or that has not the blocks or parameters that are named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        unet = build_unet(stage.model.unet, stage.latent_size)
    checkpointing.recompute(unet, checkpointing.chosen(unet, stage.engine.gradient_checkpointing))
    trains_text = stage.model.text is not None and stage.model.text.train
    denoiser = Denoiser(unet, text_encoder, trains_text)
    denoiser.freeze(stage.model.frozen)
    denoiser.train()
    if denoiser.text_encoder is not None and not trains_text:
        denoiser.text_encoder.eval()
    return denoiser
