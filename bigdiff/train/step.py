"""One optimizer step: from stored moments to moved weights."""

import torch

from bigdiff.data.latents import Batch
from bigdiff.diffusion.objective import per_sample_loss
from bigdiff.models.encoders import posterior_sample
from bigdiff.runtime.seeding import normal, uniform
from bigdiff.train.run import Run


def optimizer_step(run: Run, micro_batches: list[Batch]) -> float:
    """Forward and backward over this process's micro-batches, then the step; returns the learning rate used."""
    rate = 0.0
    for batch in micro_batches:
        positions = batch.positions
        latents = draw_latents(run, batch)
        tokens = drop_captions(run, batch.tokens, positions)
        noised = run.objective.noised(latents, positions)
        prediction = run.engine(noised.noisy, noised.timesteps, tokens)
        losses = per_sample_loss(prediction, noised.target)
        run.engine.backward(losses.mean())
        run.meters.add(losses, noised.timesteps, batch.wait_seconds)
        rate = run.engine.step(run.state.step)
    return rate


def draw_latents(run: Run, batch: Batch) -> torch.Tensor:
    """A posterior sample, anew at each visit as the original code draws it, scaled; fp32 [B, C, h, w]."""
    moments = batch.moments.float()
    channels, height, width = moments.shape[1] // 2, moments.shape[2], moments.shape[3]
    noise = normal(run.stage.seed, "posterior", batch.positions, (channels, height, width))
    latents = posterior_sample(moments, noise, run.scaling_factor)
    if run.stage.engine.channels_last:
        latents = latents.contiguous(memory_format=torch.channels_last)
    return latents


def drop_captions(run: Run, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Captions replaced by "" with probability `text_dropout`, decided anew at each visit; int64 [B, L]."""
    dropped = uniform(run.stage.seed, "text_dropout", positions) < run.stage.text_dropout
    return torch.where(dropped[:, None], run.empty_tokens[None, :], tokens)
