"""What a checkpoint holds: vectors of the trained weights by name, and where the run stands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.engine.partition import Partition

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")  # names of vectors; the others are averages (config.averages)
AVERAGES = "averages"  # where `about` says which averages there are (`began`)


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What one rank puts into a checkpoint; `about` is plain text kept for the reader (stage, start)."""

    partition: Partition
    tensors: dict[str, Sequence[torch.Tensor]]  # beside the masters and aligned with them: exp_avg, ema/0.9999, ...
    state: TrainState
    identity: Identity
    about: dict[str, str]
    loss: float | None = None  # mean training loss since the checkpoint before; for checkpoint.keep_best

    @property
    def names(self) -> tuple[str, ...]:
        """Of all vectors."""
        return (MASTER, *self.tensors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A verified checkpoint and what this rank owns of it."""

    folder: Path
    state: TrainState
    identity: Identity
    vectors: dict[str, torch.Tensor]  # local vectors by name, fp32 [partition.length] on the CPU
    about: dict[str, str]  # as it was saved


def began(about: dict[str, str]) -> dict[str, int]:
    """The averages of a checkpoint, the default one first, each with the updates before which it began."""
    found: dict[str, int] = json.loads(about.get(AVERAGES, "{}"))
    return found
