"""Pictures that are drawn in stages: from noise or a picture, then perhaps larger, led by CLIP or not.

Plain prompts are diffusers' own call, in `bigdiff.evaluate.sampling`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.data.decoding import Pixels
from bigdiff.evaluate import clip_guidance, denoising, img2img, upscale
from bigdiff.evaluate.clip_guidance import Steering
from bigdiff.evaluate.denoising import Conditions
from bigdiff.evaluate.sampling import Request, Sampling, as_pictures, generator, parts
from bigdiff.models.clip import Clip

First: TypeAlias = Image.Image | tuple[int, int]  # a picture, or the height and width of noise


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stages:
    """What a picture begins with, and what is done to it after that."""

    image: Pixels | None = None  # None: noise
    strength: float = 1.0  # share of the steps that are taken from the image
    upscale: float = 1.0  # factor of the sides; 1: none
    upscale_strength: float = 1.0  # share of the steps at the larger size
    clip: Clip | None = None  # leads to the prompts, in each stage
    clip_scale: float = 0.0


def drawn(
    pipeline: StableDiffusionPipeline,
    wanted: Sequence[Request],
    settings: Sampling,
    stages: Stages,
    bar: bool = True,
) -> Iterator[Image.Image]:
    """The pictures of `wanted`, in their order, as soon as each batch is there.

    Each depends on its seed and place, not on the batch (to rounding).

    Raises:
        UsageError: for settings that the scheduler or the model cannot take, or pictures that are not finite.
    """
    denoising.prepare(pipeline, settings)
    first = _first(pipeline, settings, stages)
    if stages.clip is not None:
        clip_guidance.refuse_unfit(pipeline, stages.clip)
        for network in (pipeline.unet, pipeline.vae):
            network.requires_grad_(False)  # gradients of weights would be kept, too
    with tqdm(total=len(wanted), unit=" images", desc="sample", disable=not bar) as progress:
        for part in parts(wanted, settings.batch):
            values = _values(pipeline, part, settings, stages, first)
            yield from as_pictures(pipeline, values, [one.place for one in part])
            progress.update(len(part))


def refuse_later(settings: Sampling, stages: Stages) -> None:
    """Raise a UsageError for a stage that cannot begin where it should, or be led."""
    if stages.clip is not None:
        clip_guidance.refuse(settings.scheduler)
    if stages.image is not None:
        denoising.refuse_later(settings, stages.strength, "--strength")
    if stages.upscale != 1:
        denoising.refuse_later(settings, stages.upscale_strength, "--upscale-strength")


def _first(pipeline: StableDiffusionPipeline, settings: Sampling, stages: Stages) -> First:
    """With what all pictures begin.

    Raises:
        UsageError: for what `pipeline` cannot do in these stages.
    """
    refuse_later(settings, stages)
    factor = pipeline.vae_scale_factor
    for size in (settings.height, settings.width):
        if size % factor:
            raise UsageError(f"--size {size} must be a multiple of {factor}, the pixels of this model's latents")
    own = denoising.own_size(pipeline)
    first: First = settings.height or own[0], settings.width or own[1]
    if stages.image is not None:
        first = img2img.fitted(stages.image, settings.height or min(own), factor)
    if stages.upscale != 1:
        height, width = (first.height, first.width) if isinstance(first, Image.Image) else first
        upscale.shape(height // factor, width // factor, stages.upscale)
    return first


@torch.no_grad()
def _values(
    pipeline: StableDiffusionPipeline, part: Sequence[Request], settings: Sampling, stages: Stages, first: First
) -> npt.NDArray[np.float32]:
    generators = [generator(one.seed, one.place) for one in part]
    conditions = Conditions(
        text=denoising.embeddings(pipeline, part, settings.guidance),
        guidance=settings.guidance,
        generators=generators,
        steering=_steering(pipeline, part, stages),
    )
    when = denoising.timesteps(pipeline, settings.steps, stages.strength)
    if isinstance(first, Image.Image):
        latents = denoising.noisy(pipeline, img2img.encoded(pipeline, first, generators), when, generators)
    else:
        latents = denoising.noise(pipeline, *first, generators)
    latents = denoising.denoise(pipeline, latents, when, conditions)
    if stages.upscale != 1:
        when = denoising.timesteps(pipeline, settings.steps, stages.upscale_strength)
        latents = denoising.noisy(pipeline, upscale.larger(latents, stages.upscale), when, generators)
        latents = denoising.denoise(pipeline, latents, when, conditions)
    return denoising.decoded(pipeline, latents)


def _steering(pipeline: StableDiffusionPipeline, part: Sequence[Request], stages: Stages) -> Steering | None:
    if stages.clip is None:
        return None
    prompts = [one.prompt or "" for one in part]
    return clip_guidance.steering(stages.clip, stages.clip_scale, prompts, pipeline.device)
