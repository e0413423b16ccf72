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
    count, unet, text = stage.batch.micro, stage.model.unet, stage.model.text
    layout = torch.channels_last if stage.engine.channels_last else torch.contiguous_format
    random = torch.Generator().manual_seed(stage.seed)
    for height, width in among:
        noisy, target = torch.randn(2, count, unet.latent_channels, height, width, generator=random)
        tokens = None
        if text is not None:
            assert denoiser.text_encoder is not None, "networks.load"
            words = int(denoiser.text_encoder.config.vocab_size)
            tokens = torch.randint(words, (count, text.max_length), generator=random).to(device)
        yield Sample(
            noisy=noisy.to(device).contiguous(memory_format=layout),
            timesteps=torch.randint(stage.diffusion.train_timesteps, (count,), generator=random).to(device),
            text=tokens,
            target=target.to(device),
        )
