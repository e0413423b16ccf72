"""One optimizer step of a run, on which nobody agrees before the next."""

from collections.abc import Sequence

from bigdiff.train.run import Run
from bigdiff.train.step import Done, forward_backward, update
from bigdiff.train.task import Micro


def optimizer_step(run: Run, micro_batches: Sequence[Micro]) -> Done:
    """Both passes and the update of the step behind `run.state`."""
    losses = forward_backward(run, micro_batches, run.state.step)
    return update(run, losses, run.state.step)
