"""Pictures that begin otherwise than with noise, drawn with a loop of our own.

For plain prompts diffusers' own call is in `bigdiff.evaluate.sampling`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from bigdiff.data.decoding import Pixels
from bigdiff.evaluate import denoising, img2img
from bigdiff.evaluate.sampling import Request, Sampling, as_pictures, generator, parts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stages:
    """What a picture begins with."""

    image: Pixels
    strength: float  # share of the steps that are taken


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
    denoising.refuse_later(settings, stages.strength, "--strength")
    size = settings.height or img2img.own_size(pipeline)
    shown = img2img.fitted(stages.image, size, pipeline.vae_scale_factor)
    with tqdm(total=len(wanted), unit=" images", desc="sample", disable=not bar) as progress:
        for part in parts(wanted, settings.batch):
            values = _values(pipeline, part, settings, stages, shown)
            yield from as_pictures(pipeline, values, [one.place for one in part])
            progress.update(len(part))


@torch.no_grad()
def _values(
    pipeline: StableDiffusionPipeline,
    part: Sequence[Request],
    settings: Sampling,
    stages: Stages,
    shown: Image.Image,
) -> npt.NDArray[np.float32]:
    generators = [generator(one.seed, one.place) for one in part]
    text = denoising.embeddings(pipeline, part, settings.guidance)
    when = denoising.timesteps(pipeline, settings.steps, stages.strength)
    clean = img2img.encoded(pipeline, shown, generators)
    latents = denoising.noisy(pipeline, clean, when, generators)
    latents = denoising.denoise(pipeline, latents, when, text, settings.guidance, generators)
    return denoising.decoded(pipeline, latents)
