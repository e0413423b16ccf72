"""Pictures that begin with another: its latents, with a later timestep's noise, denoised (SDEdit, Meng et al. 2021).

As diffusers' StableDiffusionImg2ImgPipeline: `strength` is the share of the steps that are taken; the latents are a
sample of the autoencoder's Gaussian, then noise, both of the picture's own generator. The picture is decoded, resized
and cropped as those that models are trained on (bigdiff.data).
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.data.decoding import Pixels, Undecodable, decode
from bigdiff.data.pixels import Frame, framed


def read(file: Path) -> Pixels:
    """A picture file, upright, uint8 [H, W, 3].

    Raises:
        UsageError: when it is not there, is no JPEG, PNG or WebP, is damaged, or has more than 100 million pixels.
    """
    try:
        return decode(file.read_bytes())
    except OSError as error:
        raise UsageError(f"--image {file} cannot be read: {error.strerror}") from error
    except Undecodable as error:
        raise UsageError(f"--image {file} cannot be used: {error.cause}; give a whole JPEG, PNG or WebP") from error


def fitted(pixels: Pixels, size: int, factor: int) -> Image.Image:
    """The picture with its shorter side at `size`, the longer one a multiple of `factor`: resized, its centre cropped.

    `size` is a multiple of `factor`.

    Raises:
        UsageError: when the picture is too long and narrow.
    """
    tall, wide, _ = pixels.shape
    longer = max(tall, wide) * size // min(tall, wide) // factor * factor
    frame = Frame(width=longer, height=size) if wide > tall else Frame(width=size, height=longer)
    try:
        return Image.fromarray(framed(pixels, frame))
    except Undecodable as error:
        raise UsageError(f"--image cannot be used: {error.cause}") from error


def encoded(pipeline: StableDiffusionPipeline, picture: Image.Image, generators: list[torch.Generator]) -> Tensor:
    """Scaled latents [B, C, H, W] of one picture: a sample for each generator."""
    pixels = pipeline.image_processor.preprocess(picture).to(pipeline.device, pipeline.vae.dtype)
    gaussian = pipeline.vae.encode(pixels).latent_dist
    drawn = torch.cat([gaussian.sample(generator) for generator in generators])
    return drawn * float(pipeline.vae.config.scaling_factor)
