"""Micro-batches of noise in the shapes of a stage's own, on which its network is tried before it trains."""

from collections.abc import Iterator

import torch

from bigdiff.config.schema import Stage
from bigdiff.data.images import sizes
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import Denoiser
from bigdiff.train.data import Sets


def shapes(stage: Stage, sets: Sets) -> tuple[tuple[int, int], ...]:
    """Height and width of the stage's latents (pixels, without a VAE): the square, or those of the sets' buckets."""
    factor = stage.model.vae.factor if stage.model.vae else 1
    if not stage.data.buckets:
        return ((stage.latent_size, stage.latent_size),)
    found = {size for one in sets for size in sizes(one.manifest.buckets, one.location)}
    return tuple(sorted((height // factor, width // factor) for width, height in found))


def samples(
    stage: Stage, denoiser: Denoiser, among: tuple[tuple[int, int], ...], device: torch.device
) -> Iterator[Sample]:
    """One for each shape, the same on all ranks, laid out in memory as the stage's are."""
    count, unet = stage.batch.micro, stage.model.unet
    layout = torch.channels_last if stage.engine.channels_last else torch.contiguous_format
    random = torch.Generator().manual_seed(stage.seed)
    for height, width in among:
        noisy, target = torch.randn(2, count, unet.latent_channels, height, width, generator=random)
        text = None if stage.model.text is None else tokens(stage, denoiser, device, random)
        yield Sample(
            noisy=noisy.to(device).contiguous(memory_format=layout),
            timesteps=torch.randint(stage.diffusion.train_timesteps, (count,), generator=random).to(device),
            text=text,
            target=target.to(device),
        )


def tokens(stage: Stage, denoiser: Denoiser, device: torch.device, random: torch.Generator) -> torch.Tensor:
    """Token ids int64 [B, L] of a micro-batch of no words."""
    assert denoiser.text_encoder is not None and stage.model.text is not None, "networks.load"
    words, shape = int(denoiser.text_encoder.config.vocab_size), (stage.batch.micro, stage.model.text.max_length)
    return torch.randint(words, shape, generator=random).to(device)
