"""CLIP guidance: each step is led to pictures that CLIP finds closer to the prompt.

Crowson's (2021) guided diffusion, as in diffusers' community pipeline clip_guided_stable_diffusion: the loss is the
squared great-circle distance of CLIP's embeddings, of the picture that the model predicts in the step and of the
prompt. Its gradient after the noisy latents, through the network and the autoencoder, is added to the predicted eps,
eps + sqrt(1 - alphas_cumprod) * gradient (Dhariwal & Nichol 2021, algorithm 2, where it is that of -log p).

Unlike the community's: the predicted picture is decoded as it is, not mixed with the noisy latents; it is that of
classifier-free guidance; CLIP sees all of it in place of random cutouts, so that nothing depends on the batch.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.models.clip import Clip

SCHEDULERS: Final = ("ddim", "pndm", "dpm++")  # those of the community's pipelines, whose timesteps have an eps


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Steering:
    """Where a batch is led to."""

    clip: Clip
    scale: float  # of the loss
    said: Tensor  # [B, D]: embeddings of the prompts


def refuse(scheduler: str) -> None:
    """Raise a UsageError when CLIP guidance is not defined with `scheduler`."""
    if scheduler not in SCHEDULERS:
        raise UsageError(
            f"--clip-guidance is defined with {', '.join(SCHEDULERS)} alone, which step from one eps at a timestep of "
            f"the training: scheduler {scheduler} is none of them"
        )


def refuse_unfit(pipeline: StableDiffusionPipeline, clip: Clip) -> None:
    """Raise a UsageError for a model without eps at its first timestep, or a CLIP that is shown pictures otherwise."""
    if pipeline.scheduler.config.get("rescale_betas_zero_snr"):
        raise UsageError("--clip-guidance changes eps, which a model with zero terminal SNR does not have at its start")
    if clip.preprocessing.resize_mode != "shortest":
        raise UsageError("--clip is shown squashed or padded pictures: take one that is shown their centre squares")


def steering(clip: Clip, scale: float, prompts: list[str], device: torch.device) -> Steering:
    """Towards `prompts`."""
    return Steering(clip=clip, scale=scale, said=torch.from_numpy(clip.text_features(prompts)).to(device))


def correction(
    pipeline: StableDiffusionPipeline, told: Tensor, latents: Tensor, timestep: Tensor, towards: Steering
) -> Tensor:
    """What to add to `told`, the model's prediction for `latents` [B, C, H, W]; autograd knows how it was made."""
    scheduler = pipeline.scheduler
    cumulative = scheduler.alphas_cumprod[int(timestep)].to(latents)
    signal, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    target = str(scheduler.config.prediction_type)
    clean = predicted_clean(target, told, latents, signal, sigma)
    pixels = pipeline.vae.decode(clean / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    network: Any = towards.clip.network  # open_clip is untyped
    found = network.encode_image(seen(towards.clip, pixels), normalize=True)
    # a sum, so that no picture's gradient depends on how many there are
    loss = towards.scale * spherical(found, towards.said.to(found)).sum()
    (gradient,) = torch.autograd.grad(loss, latents)
    return change(target, sigma * gradient, signal, sigma)


def spherical(one: Tensor, other: Tensor) -> Tensor:
    """Half the squared angle between unit vectors [B, D]: [B]. As Crowson, by the chord, exact for small angles."""
    chord = torch.linalg.vector_norm(one - other, dim=-1)
    squared: Tensor = 2 * (chord / 2).arcsin() ** 2
    return squared


def seen(clip: Clip, pixels: Tensor) -> Tensor:
    """Decoded pictures [B, 3, H, W] from -1 to 1 as CLIP is shown them [B, 3, S, S], differentiable."""
    settings = clip.preprocessing
    side = settings.size if isinstance(settings.size, int) else settings.size[0]
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    resized = torch.nn.functional.interpolate(
        (pixels / 2 + 0.5).clamp(0, 1),
        (height * side // shorter, width * side // shorter),
        mode=settings.interpolation,
        antialias=True,
    )
    top, left = round((resized.shape[-2] - side) / 2), round((resized.shape[-1] - side) / 2)
    square = resized[..., top : top + side, left : left + side]
    mean, std = (torch.tensor(one).to(square)[:, None, None] for one in (settings.mean, settings.std))
    return (square - mean) / std


def predicted_clean(target: str, told: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """The x_0 that a model of `target` predicts: noisy = signal x_0 + sigma eps, v = signal eps - sigma x_0."""
    if target == "sample":
        return told
    return signal * noisy - sigma * told if target == "v_prediction" else (noisy - sigma * told) / signal


def change(target: str, of_eps: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """The change of what a model of `target` predicts when its eps changes by `of_eps` and what it sees does not."""
    if target == "sample":
        return -sigma / signal * of_eps
    return of_eps / signal if target == "v_prediction" else of_eps
