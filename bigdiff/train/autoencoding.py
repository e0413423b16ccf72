"""Training the autoencoder itself: from pictures to the losses of reconstruction, posterior and discriminator.

The losses are those of ldm/modules/losses/contperceptual.py, sums over a sample's pixels, with three differences:

- Both networks step at once (bigdiff.models.autoencoder).
- The adaptive weight (Esser et al. 2021, eq. 7) is that of the whole global batch. The original computes it per GPU
  and micro-batch, so that it changes with their number; here the two small gradients are averaged over all of them
  first. It costs an all-reduce, and with accumulation a further pass per micro-batch, but no backward pass of the
  autoencoder.
- There is no `logvar`: the original scales the reconstruction loss with exp(-logvar), but gives that parameter to no
  optimizer (ldm/models/autoencoder.py, configure_optimizers), so that it stays 0 and changes nothing.

The gradients of the reconstruction's loss and of the adversarial one are computed with respect to the pixels, once:
they serve the adaptive weight, and then the backward pass starts from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from bigdiff.config.schema import Autoencoder, Stage
from bigdiff.data.images import ImageBatch
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.autoencoder import Passed, adaptive_weight, at_last_layer, kl, wide
from bigdiff.models.encoders import in_range
from bigdiff.models.perceptual import Perceptual
from bigdiff.runtime.seeding import normal
from bigdiff.runtime.world import World
from bigdiff.train.task import Losses, Micro


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The reconstruction loss of B samples."""

    losses: Tensor  # fp32 [B], sums over the pixels
    gradients: Tensor  # of each sample's with respect to its own reconstruction, fp32 [B, 3, H, W]
    distances: Tensor | None  # LPIPS [B]


def reconstruction(
    config: Autoencoder, perceptual: Perceptual | None, pixels: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor | None]:
    """|x - x'| or its square plus LPIPS, which counts once for every value of the picture, as in the original code.

    Of fp32 [B, 3, H, W] each: the losses [B], and LPIPS alone [B], where it is computed.
    """
    measure = functional.l1_loss if config.reconstruction == "l1" else functional.mse_loss
    losses = measure(drawn, pixels, reduction="none").flatten(1).sum(1)
    if perceptual is None:
        return losses, None
    distances = perceptual(pixels, drawn)
    return losses + config.perceptual_weight * drawn[0].numel() * distances, distances


def wanted(config: Autoencoder, perceptual: Perceptual | None, pixels: Tensor, drawn: Tensor) -> Wanted:
    """The loss of `reconstruction` with its gradient."""
    leaf = wide(drawn).detach().requires_grad_()
    with torch.enable_grad():
        losses, distances = reconstruction(config, perceptual, pixels, leaf)
        (gradients,) = torch.autograd.grad(losses.sum(), leaf)
    return Wanted(
        losses=losses.detach(), gradients=gradients, distances=None if distances is None else distances.detach()
    )


def joined(config: Autoencoder, passed: Passed, known: Wanted, weight: Tensor) -> Tensor:
    """What both networks minimise, a scalar; `weight` of the adversarial loss is a constant.

    Its value is the sum of all losses; its gradient reaches the autoencoder through the reconstruction and the
    posterior, and the discriminator through its own loss.
    """
    gradients = known.gradients + weight * passed.pull
    through = (wide(passed.drawn) * gradients).flatten(1).sum(1)  # its gradient is theirs; its value is nothing
    value = known.losses + weight * passed.fooling
    losses = through - through.detach() + value + config.kl_weight * kl(passed.moments) + passed.hinge
    return losses.mean()


def psnr(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, [B]; pixels in [-1, 1]."""
    error = (drawn.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


@dataclass(kw_only=True, slots=True)
class Autoencoding:
    """The task of an autoencoder stage."""

    stage: Stage
    config: Autoencoder
    engine: Engine
    world: World
    perceptual: Perceptual | None
    last_layer: torch.Size  # shape of the decoder's last weight
    ahead: Tensor | None = None  # the step's adaptive weight, where it had to be found before the first micro-batch

    def begin(self, batches: Sequence[Micro]) -> None:
        """Find the adaptive weight of a step that takes several passes."""
        self.ahead = None
        if len(batches) == 1 or not self.judged(batches[0]):
            return
        sums: list[Tensor] = []
        for batch in batches:
            pixels = self.pixels(batch)
            with torch.no_grad():
                passed = self.passed(batch, pixels)
            sums.append(self.gradients(passed, wanted(self.config, self.perceptual, pixels, passed.drawn)))
        self.ahead = self.weighed(torch.stack(sums).mean(0))

    def losses(self, batch: Micro) -> Losses:
        """All losses of one micro-batch, joined."""
        pixels, judged = self.pixels(batch), self.judged(batch)
        passed = self.passed(batch, pixels)
        known = wanted(self.config, self.perceptual, pixels, passed.drawn)
        adaptive = torch.zeros_like(known.losses[0])
        if judged:
            adaptive = self.weighed(self.gradients(passed, known)) if self.ahead is None else self.ahead
        drawn = wide(passed.drawn).detach()
        terms = {
            "l1": (drawn - pixels).abs().mean(),
            "psnr": psnr(pixels, drawn).mean(),
            "kl": kl(passed.moments).mean(),
        }
        if known.distances is not None:
            terms["perceptual"] = known.distances.mean()
        if judged:
            terms |= {"gen": passed.fooling.mean(), "disc": passed.hinge.mean(), "adaptive_weight": adaptive}
        total = joined(self.config, passed, known, self.config.disc_weight * adaptive)
        return Losses(total=total, per_sample=known.losses, terms=terms)

    def judged(self, batch: Micro) -> bool:
        """Whether the discriminator takes part in this batch's step."""
        step = batch.consumed.position // self.stage.batch.total
        return self.config.disc_weight > 0 and step >= self.config.disc_start

    def pixels(self, batch: Micro) -> Tensor:
        """fp32 [B, 3, H, W] in [-1, 1]."""
        assert isinstance(batch, ImageBatch), "an autoencoder stage reads pictures"
        layout = torch.channels_last if self.stage.engine.channels_last else torch.contiguous_format
        return in_range(batch.pixels).contiguous(memory_format=layout)

    def passed(self, batch: Micro, pixels: Tensor) -> Passed:
        """One pass under the engine, with a posterior sample that is drawn anew at each visit."""
        side = self.stage.resolution // self.config.factor
        noise = normal(self.stage.seed, "posterior", batch.positions, (self.config.latent_channels, side, side))
        return cast(Passed, self.engine(pixels, noise, self.judged(batch)))

    def gradients(self, passed: Passed, known: Wanted) -> Tensor:
        """Of the two losses at the decoder's last layer, the mean over a micro-batch: [2, *last_layer]."""
        both = (known.gradients, passed.pull)
        return torch.stack([at_last_layer(passed, one, self.last_layer) for one in both])

    def weighed(self, gradients: Tensor) -> Tensor:
        """The adaptive weight, given this process's mean gradients; collective."""
        ours, theirs = self.world.mean(gradients)
        return adaptive_weight(ours, theirs)
