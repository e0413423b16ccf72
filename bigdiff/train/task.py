"""The border between the loop and what a stage trains: a task turns a micro-batch into losses."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from bigdiff.data.images import ImageBatch
from bigdiff.data.latents import Batch

Micro = Batch | ImageBatch  # a micro-batch of one process


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What the network makes of one micro-batch of B samples."""

    total: torch.Tensor  # scalar: what is minimised, a mean over the micro-batch
    per_sample: torch.Tensor  # fp32 [B], unweighted: which samples are hard, or broken
    timesteps: torch.Tensor | None = None  # int64 [B], where the task has noise levels
    terms: dict[str, torch.Tensor] = field(default_factory=dict)  # scalars, means over it, logged as train/<name>

    def detached(self) -> "Losses":
        """The same figures, which keep no graph alive."""
        terms = {name: term.detach() for name, term in self.terms.items()}
        return replace(self, total=self.total.detach(), per_sample=self.per_sample.detach(), terms=terms)


class Task(Protocol):
    """What a stage trains. What it needs (engine, objective, frozen networks) is given when it is made."""

    def begin(self, batches: Sequence[Micro]) -> None:
        """Look at all micro-batches of a step before the first of them is computed; collective."""

    def losses(self, batch: Micro) -> Losses:
        """Run the network under the engine; every draw is computed from the seed and `batch.positions`."""
