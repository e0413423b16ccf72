"""Denoising from any timestep with the parts of a `StableDiffusionPipeline`, for what its own call cannot begin with.

The same steps as diffusers' text-to-image and image-to-image pipelines take, and from the same noise: the tests hold
them against both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import clip_guidance
from bigdiff.evaluate.clip_guidance import Steering
from bigdiff.evaluate.sampling import SCHEDULERS, Request, Sampling, check, refuse_steps, refuse_unfit

# diffusers' PNDM counts its steps from the first: begun later it takes Runge-Kutta's timesteps, or one that is taken
FROM_NOISE: Final = ("pndm",)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conditions:
    """What the steps of a batch are led by."""

    text: Tensor  # as `embeddings` gives it
    guidance: float
    generators: Sequence[torch.Generator]
    steering: Steering | None = None


def prepare(pipeline: StableDiffusionPipeline, settings: Sampling) -> None:
    """Give `pipeline` the scheduler of `settings`.

    Raises:
        UsageError: for settings that the scheduler or the model cannot take.
    """
    check(settings)
    refuse_unfit(settings.scheduler, pipeline.scheduler.config)
    refuse_steps(settings.steps, pipeline.scheduler.config)
    pipeline.scheduler = SCHEDULERS[settings.scheduler].from_config(pipeline.scheduler.config)


def refuse_later(settings: Sampling, strength: float, what: str) -> None:
    """Raise a UsageError when `settings` cannot begin where `strength` says, which the user calls `what`."""
    if settings.scheduler in FROM_NOISE:
        others = ", ".join(name for name in SCHEDULERS if name not in FROM_NOISE)
        raise UsageError(f"scheduler {settings.scheduler} begins with noise alone, {what} later: take one of {others}")
    if not 0 < strength <= 1:
        raise UsageError(f"{what} {strength:g} must be above 0 and at most 1")
    if int(settings.steps * strength) < 1:
        raise UsageError(f"{what} {strength:g} of {settings.steps} steps is no step: raise the one or the other")


def timesteps(pipeline: StableDiffusionPipeline, steps: int, strength: float) -> Tensor:
    """The last `strength` of the scheduler's timesteps, which is set to begin there; 1 is all of them."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps, device=pipeline.device)
    first = (steps - int(steps * strength)) * scheduler.order  # rounded as diffusers does
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    found: Tensor = scheduler.timesteps[first:]
    return found


def own_size(pipeline: StableDiffusionPipeline) -> tuple[int, int]:
    """Height and width in pixels of the pictures that the model was trained on."""
    latents = pipeline.unet.config.sample_size
    height, width = (latents, latents) if isinstance(latents, int) else latents
    return int(height) * pipeline.vae_scale_factor, int(width) * pipeline.vae_scale_factor


def noise(pipeline: StableDiffusionPipeline, height: int, width: int, generators: Sequence[torch.Generator]) -> Tensor:
    """What drawing from nothing begins with, for pictures of `height` x `width` pixels: latents [B, C, H, W].

    The scheduler's timesteps must be set.
    """
    channels, dtype = pipeline.unet.config.in_channels, pipeline.unet.dtype
    found: Tensor = pipeline.prepare_latents(
        len(generators), channels, height, width, dtype, pipeline.device, list(generators)
    )
    return found


def noisy(
    pipeline: StableDiffusionPipeline, clean: Tensor, when: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Latents [B, C, H, W] with the noise of the first of the timesteps `when`, each of its own generator."""
    drawn = randn_tensor(clean.shape, generator=list(generators), device=clean.device, dtype=clean.dtype)
    found: Tensor = pipeline.scheduler.add_noise(clean, drawn, when[:1].repeat(len(clean)))
    return found


def embeddings(pipeline: StableDiffusionPipeline, part: Sequence[Request], guidance: float) -> Tensor:
    """States of the prompts [B, L, D], or of the negative ones and the prompts [2B, L, D] where guidance needs both."""
    both = guidance > 1
    said, unsaid = pipeline.encode_prompt(
        [one.prompt for one in part], pipeline.device, 1, both, [one.negative for one in part]
    )
    return torch.cat([unsaid, said]) if both else said


def denoise(pipeline: StableDiffusionPipeline, latents: Tensor, when: Tensor, conditions: Conditions) -> Tensor:
    """Latents [B, C, H, W] at the first of the timesteps `when` -> clean ones."""
    extra = pipeline.prepare_extra_step_kwargs(list(conditions.generators), 0.0)
    for timestep in when:
        told = _told(pipeline, latents, timestep, conditions)
        latents = pipeline.scheduler.step(told, timestep, latents, return_dict=False, **extra)[0]
    return latents


def _told(pipeline: StableDiffusionPipeline, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
    text, guidance = conditions.text, conditions.guidance
    if conditions.steering is None:
        return predicted(pipeline, latents, timestep, text, guidance)
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        told = predicted(pipeline, leaf, timestep, text, guidance)
        added = clip_guidance.correction(pipeline, told, leaf, timestep, conditions.steering)
    return told.detach() + added


def predicted(
    pipeline: StableDiffusionPipeline, latents: Tensor, timestep: Tensor, text: Tensor, guidance: float
) -> Tensor:
    """What the model says of `latents` [B, C, H, W], with classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
    seen = torch.cat([latents, latents]) if guidance > 1 else latents
    scaled = pipeline.scheduler.scale_model_input(seen, timestep)
    told: Tensor = pipeline.unet(scaled, timestep, encoder_hidden_states=text, return_dict=False)[0]
    if guidance == 1:
        return told
    without, with_text = told.chunk(2)
    return without + guidance * (with_text - without)


def decoded(pipeline: StableDiffusionPipeline, latents: Tensor) -> npt.NDArray[np.float32]:
    """Pictures [B, H, W, 3] from 0 to 1 of scaled latents."""
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    values: npt.NDArray[np.float32] = pipeline.image_processor.postprocess(pixels, output_type="np")
    return values
