"""The held-out samples of a stage, with what gives their loss for any weights."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Data, Stage, on_images
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.diffusion import objective
from bigdiff.diffusion.objective import Objective, per_sample_loss
from bigdiff.evaluate.validation import Frozen, Network, Sums, scores
from bigdiff.runtime.world import World
from bigdiff.train import data as stream
from bigdiff.train import networks
from bigdiff.train.inputs import Captions, Latents, Pixels
from bigdiff.train.networks import Networks
from bigdiff.train.task import Micro


@dataclass(frozen=True, kw_only=True)
class Held:
    """Held-out samples, and what computes their loss."""

    stage: Stage  # that of `held_out`
    world: World
    sets: stream.Sets
    course: Course
    objective: Objective
    samples: Latents | Pixels
    captions: Captions | None
    network: Network

    def batches(self) -> Generator[list[Micro], None, None]:
        """This process's micro-batches, without end; to be closed."""
        return stream.stream(self.stage, self.world, self.sets, self.course, 0, Quarantine())

    def prepared(self, trained: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
        """All weights by name, in the precision that the stage computes in."""
        return self.network.prepared(trained, half)

    def sums(self, weights: Mapping[str, Tensor], batch: Micro) -> Sums:
        """Of a micro-batch's losses, by timestep."""
        return Sums.none().plus(*self.losses(weights, batch), self.stage.diffusion.train_timesteps)

    def scores(self, sums: Sums, suffix: str) -> dict[str, float]:
        """Means and standard errors, as they are logged."""
        return scores(sums, suffix)

    def losses(self, weights: Mapping[str, Tensor], batch: Micro) -> tuple[Tensor, Tensor]:
        """Of each sample the unweighted loss, fp32 [B], and its timestep, int64 [B]."""
        text = None if self.captions is None else self.captions.text(batch)
        noised = self.objective.noised(self.samples.clean(batch), batch.positions)
        prediction = self.network.predict(weights, noised.noisy, noised.timesteps, text)
        return per_sample_loss(prediction, noised.target), noised.timesteps


def held_out(stage: Stage) -> Stage:
    """`stage` on its held-out set, where nothing is drawn but by sample: no dropout, flips or boxes, one seed for all.

    Timesteps follow Sobol's sequence, so that few samples cover them evenly, whatever the batch.
    """
    location = stage.validation.set
    pictures = on_images(stage.data)
    data = Data(
        images=location if pictures else "",
        latents="" if pictures else location,
        buckets=stage.data.buckets,
        read_ahead=stage.data.read_ahead,
        read_threads=stage.data.read_threads,
        disk_ahead_gb=0.0,  # few samples, read again and again: it would ask for others behind them
        cache=stage.data.cache,
        cache_gb=stage.data.cache_gb,
    )
    plain = replace(
        stage.diffusion,
        timesteps="uniform",
        logit_mean=0.0,
        logit_std=0.0,
        timestep_draws="sobol",
        offset_noise=0.0,
        input_perturbation=0.0,
    )
    steps = stage.validation.samples // stage.batch.total
    return replace(stage, seed=0, text_dropout=0.0, steps=steps, data=data, diffusion=plain)


def enough(stage: Stage, sets: stream.Sets) -> None:
    """Raise a UsageError where the held-out `sets` have fewer samples than `stage` asks for."""
    wanted, there = stage.validation.samples, sum(one.manifest.samples for one in sets)
    if there < wanted:
        raise UsageError(f"validation.samples={wanted} is more than the {there} of {stage.validation.set}: lower it")


@contextmanager
def opened(found: Networks, world: World) -> Iterator[Held]:
    """The held-out samples of a stage; `found` are its networks, before the engine has them.

    Raises:
        UsageError: for a set that does not fit the stage, or has too few samples.
    """
    stage = held_out(found.stage)
    own = replace(found, stage=stage)
    with stream.opened(stage.data) as sets:
        networks.fit(own, sets)
        enough(found.stage, sets)
        yield Held(
            stage=stage,
            world=world,
            sets=sets,
            course=stream.course(stage, sets),
            objective=objective.build(stage.diffusion, stage.seed, stage.batch.total, world.device),
            samples=networks.samples(own, False, world.device),
            captions=networks.captions(own, sets, world.device),
            network=Network(stage, Frozen.of(found.denoiser)),
        )
