"""The held-out pictures of an autoencoder's stage, with what gives the terms of its loss for any weights."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call

from bigdiff.config.schema import Autoencoder, Stage
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.images import ImageBatch
from bigdiff.evaluate.validation import Sums, term_scores
from bigdiff.models.autoencoder import Codec, Passed, build, kl, wide
from bigdiff.models.encoders import in_range
from bigdiff.models.perceptual import Perceptual
from bigdiff.runtime.seeding import normal
from bigdiff.runtime.world import World
from bigdiff.train import data as stream
from bigdiff.train.autoencoders import Networks
from bigdiff.train.autoencoding import psnr, reconstruction
from bigdiff.train.held import enough, held_out
from bigdiff.train.task import Micro


@dataclass(frozen=True, kw_only=True)
class HeldPictures:
    """Held-out pictures, and what computes the terms of their loss, all but the discriminator's."""

    stage: Stage  # that of `held_out`
    config: Autoencoder
    world: World
    sets: stream.Sets
    course: Course
    perceptual: Perceptual | None
    codec: Codec  # its shape; the weights come with each call
    frozen: Mapping[str, Tensor]  # weights that are not trained, "vae.*"

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is summed, as they are logged."""
        return ("loss", "l1", "psnr", "kl", *(("perceptual",) if self.perceptual is not None else ()))

    def batches(self) -> Generator[list[Micro], None, None]:
        """This process's micro-batches, without end; to be closed."""
        return stream.stream(self.stage, self.world, self.sets, self.course, 0, Quarantine())

    def prepared(self, trained: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
        """The autoencoder's weights by name, in the precision that the stage computes in."""
        kind = torch.bfloat16 if half else torch.float32
        whole = {**self.frozen, **trained}
        return {name: one.to(self.world.device, kind) for name, one in whole.items() if name.startswith("vae.")}

    def sums(self, weights: Mapping[str, Tensor], batch: Micro) -> Sums:
        """Of `terms` over a micro-batch; posterior samples are computed from seed 0 and each picture's position."""
        assert isinstance(batch, ImageBatch), "an autoencoder stage reads pictures"
        pixels = in_range(batch.pixels).contiguous()
        side = self.stage.resolution // self.config.factor
        noise = normal(self.stage.seed, "posterior", batch.positions, (self.config.latent_channels, side, side))
        passed = cast(Passed, functional_call(self.codec, dict(weights), (pixels, noise, False)))
        drawn, apart = wide(passed.drawn), kl(passed.moments)
        losses, distances = reconstruction(self.config, self.perceptual, pixels, drawn)
        terms = [losses + self.config.kl_weight * apart, (drawn - pixels).abs().flatten(1).mean(1)]
        terms += [psnr(pixels, drawn), apart, *([distances] if distances is not None else [])]
        return Sums.by_term(terms)

    def scores(self, sums: Sums, suffix: str) -> dict[str, float]:
        """Means and standard errors, as they are logged."""
        return term_scores(sums, self.terms, suffix)


@contextmanager
def opened(found: Networks, world: World) -> Iterator[HeldPictures]:
    """The held-out pictures of a stage; `found` are its networks, before the engine has them.

    Raises:
        UsageError: for a set that does not fit the stage, or has too few samples.
    """
    stage = held_out(found.stage)
    with stream.opened(stage.data) as sets:
        stream.fit_shapes(stage, sets)
        enough(found.stage, sets)
        with torch.device("meta"):
            codec = Codec(build(found.config, stage.resolution), None).eval()
        yield HeldPictures(
            stage=stage,
            config=found.config,
            world=world,
            sets=sets,
            course=stream.course(stage, sets),
            perceptual=None if found.perceptual is None else found.perceptual.to(world.device),
            codec=codec,
            frozen={name: one.detach().clone() for name, one in found.untrained().items()},
        )
