"""What the frozen networks give: latents from pixels and back, states from token ids."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel

LOG_VARIANCE: tuple[float, float] = (-30.0, 20.0)  # diffusers' DiagonalGaussianDistribution clamps to it


def in_range(pixels: Tensor) -> Tensor:
    """uint8 0 to 255 -> fp32 -1 to 1, any shape."""
    return pixels.float() / 127.5 - 1


def moments(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Mean and log-variance [B, 2C, h, w], unscaled and unclamped, of pixels [B, 3, H, W] in [-1, 1]."""
    parameters: Tensor = vae.encode(pixels).latent_dist.parameters
    return parameters


def posterior_sample(moments: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """Latents [B, C, h, w], scaled: (mean + std * noise) * scaling_factor (Rombach et al. 2022, section 3.1)."""
    mean, log_variance = moments.chunk(2, dim=1)
    std = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE))
    return (mean + std * noise) * scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W], clamped to [-1, 1], of scaled latents [B, C, h, w]."""
    pixels: Tensor = vae.decode(latents / vae.config["scaling_factor"]).sample
    return pixels.clamp(-1, 1)


def text_states(text_encoder: CLIPTextModel, ids: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """The last hidden state [B, L, D], after the final layer norm as SD 1.x takes it, of token ids [B, L].

    Of the module's own weights, or of `weights` by its names in place of those that they name.
    """
    found = functional_call(text_encoder, dict(weights), (ids,)) if weights else text_encoder(ids)
    states: Tensor = found.last_hidden_state
    return states
