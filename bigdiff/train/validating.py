"""The loss on a stage's held-out samples while it trains: of its weights and of its first average."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor

from bigdiff.config import averages
from bigdiff.evaluate.validation import Sums
from bigdiff.train.held import Held
from bigdiff.train.held_pictures import HeldPictures
from bigdiff.train.run import Run


def due(run: Run) -> bool:
    """Whether the step is one of those at which a stage is validated; its end is another."""
    every = run.stage.validation.every
    return every > 0 and run.state.step % every == 0


def validated(run: Run) -> dict[str, float]:
    """Means over all samples of the weights, and of the first average; collective. Names as they are logged.

    Nothing without held-out samples.
    """
    found: dict[str, float] = {}
    held = run.held
    if held is None:
        return found
    for suffix, local in asked(run):
        weights = held.prepared(run.engine.gather(local), run.engine.half)
        found |= held.scores(summed(run, held, weights), suffix)
    return found


def asked(run: Run) -> list[tuple[str, Sequence[Tensor]]]:
    """Which weights are validated, with what their tags have behind the names."""
    name = averages.held(averages.DEFAULT, tuple(run.ema.tensors), f"stage {run.stage.name}")
    average = [] if name == averages.RAW else [("_ema", run.ema.tensors[name])]
    return [("", run.engine.partition.masters), *average]


def summed(run: Run, held: Held | HeldPictures, weights: Mapping[str, Tensor]) -> Sums:
    """Over the samples of all processes, in their order; collective."""
    own: list[Sums] = []
    with ExitStack() as closing, torch.inference_mode():
        batches = held.batches()
        closing.callback(batches.close)
        for several in islice(batches, held.stage.steps):
            run.watch.at(run.state.step, "validation")
            for batch in several:
                own.append(held.sums(weights, batch))
    return Sums.of_all([Sums(*one) for one in run.world.gather(tuple(Sums.of_all(own)))])
