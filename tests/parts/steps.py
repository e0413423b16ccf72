"""One optimizer step of a run, on which nobody agrees before the next, and what an update moves."""

from collections.abc import Sequence

import torch

from bigdiff.train.run import Run
from bigdiff.train.step import Done, forward_backward, update
from bigdiff.train.task import Micro


def optimizer_step(run: Run, micro_batches: Sequence[Micro]) -> Done:
    """Both passes and the update of the step behind `run.state`."""
    losses = forward_backward(run, micro_batches, run.state.step)
    return update(run, losses, run.state.step)


def vectors(run: Run) -> list[torch.Tensor]:
    """Masters, moments and averages, copied."""
    moments = [one for parts in run.engine.moments().values() for one in parts]
    averages = [one for parts in run.ema.tensors.values() for one in parts]
    return [one.clone() for one in (*run.engine.partition.masters, *moments, *averages)]
