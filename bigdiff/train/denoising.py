"""Diffusion, with and without text, on latents and on pixels: from a micro-batch to the loss of a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigdiff.config.schema import Stage
from bigdiff.diffusion.objective import Objective, per_sample_loss
from bigdiff.engine.deepspeed import Engine
from bigdiff.train.inputs import Captions, Encoded, Latents, Pixels
from bigdiff.train.task import Losses, Micro


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoising:
    """The task of a diffusion stage."""

    stage: Stage
    engine: Engine
    objective: Objective
    samples: Latents | Pixels
    captions: Captions | Encoded | None  # None without text

    def begin(self, batches: Sequence[Micro]) -> None:
        """Nothing: each micro-batch stands for itself."""

    def losses(self, batch: Micro) -> Losses:
        """The objective's weighted loss; the unweighted one of each sample beside it, so that runs compare."""
        clean = self.samples.clean(batch)
        if self.stage.engine.channels_last:
            clean = clean.contiguous(memory_format=torch.channels_last)
        texts = () if self.captions is None else (self.captions.text(batch),)
        noised = self.objective.noised(clean, batch.positions)
        prediction = self.engine(noised.noisy, noised.timesteps, *texts)
        losses = per_sample_loss(prediction, noised.target)
        total = (losses * noised.weights).mean()
        return Losses(total=total, per_sample=losses, timesteps=noised.timesteps)
