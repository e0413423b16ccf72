"""One optimizer step: from a process's micro-batches to moved weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigdiff.engine.deepspeed import Stepped
from bigdiff.train.run import Run
from bigdiff.train.task import Losses, Micro


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What one step did on this process."""

    stepped: Stepped
    losses: tuple[Losses, ...]  # of each micro-batch, without their graphs

    @property
    def loss(self) -> torch.Tensor:
        """Mean loss of this process's samples, unweighted; not finite when what was minimised is not. A scalar."""
        return torch.stack([one.per_sample.mean() + 0 * one.total for one in self.losses]).mean()


def forward_backward(run: Run, micro_batches: Sequence[Micro], step: int) -> tuple[Losses, ...]:
    """All of `step` but the update: both passes of this process's micro-batches; gives their losses."""
    seen = []
    run.task.begin(micro_batches)
    for number, batch in enumerate(micro_batches, 1):
        with run.meters.forward():
            losses = run.task.losses(batch)
        run.engine.backward(poisoned(losses.total))
        seen.append(losses.detached())
        if number < len(micro_batches):
            run.engine.step(step)  # counts it
    return tuple(seen)


def update(run: Run, losses: tuple[Losses, ...], step: int) -> Done:
    """Move the weights by the gradients of `forward_backward`; tells what `step` did."""
    stepped = run.engine.step(step)
    assert stepped is not None, "a step's micro-batches end at an accumulation boundary"
    return Done(stepped=stepped, losses=losses)


def poisoned(total: torch.Tensor) -> torch.Tensor:
    """`total`, bit for bit, in value and gradient; where it is not finite, its gradient is not finite either.

    A mean that overflows may have a finite gradient. Poisoned on one rank, it makes the global norm not finite, by
    which every rank leaves the step out, and no further collective is needed to agree on that.
    """
    return total * (0 * total.detach() + 1)


def meter(run: Run, batches: Sequence[Micro], done: Done) -> None:
    """Count a step that is kept in the run's figures; of one that is not, only the time it waited."""
    for batch, losses in zip(batches, done.losses, strict=True):
        run.meters.add(losses.total, losses.per_sample, losses.timesteps, batch.wait_seconds)
        run.meters.add_terms(losses.terms)
