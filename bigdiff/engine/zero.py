"""What the engine must know of a ZeRO stage's insides: one border, behind which each stage has a module of its own.

Stages 1 and 2 (flat.py), 3 (scattered.py) and 0 (replicated.py) give every rank other ranges of the canonical vector.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from bigdiff.config.errors import RunError
from bigdiff.engine.partition import Partition

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's first and second moment, as torch names them
Parts = tuple[torch.Tensor, ...]
State = dict[torch.Tensor, dict[str, torch.Tensor]]  # of a torch optimizer: by the tensor it steps


class Zero(Protocol):
    """One stage of ZeRO over one optimizer."""

    partition: Partition

    def moments(self) -> dict[str, Parts]:
        """AdamW's moments of what this rank owns, aligned with the masters; live once there was an update."""
        ...

    def restore(self, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """Make the masters, just written, the weights of all ranks; Adam has these local vectors; collective.

        `moments` None, or no updates, starts Adam afresh.
        """
        ...

    def norm(self) -> torch.Tensor | float:
        """Global L2 norm, before clipping, of the gradient that is about to be applied; not finite where that is not.

        The same on all ranks. Called inside the optimizer's step, once, with all gradients reduced.
        """
        ...


def moments_of(state: State, stepped: Sequence[torch.Tensor]) -> dict[str, Parts]:
    """The moments of each of the `stepped` tensors; zeros before the first update."""
    return {
        name: tuple(state[one][name] if state.get(one) else torch.zeros_like(one).detach() for one in stepped)
        for name in MOMENTS
    }


def put_moments(
    state: State, stepped: Sequence[torch.Tensor], moments: Mapping[str, Sequence[torch.Tensor]] | None, updates: int
) -> None:
    """Make `moments` (aligned with `stepped`) the optimizer's state after `updates` updates; None starts it afresh."""
    state.clear()
    if moments is None or updates == 0:
        return
    for number, one in enumerate(stepped):
        count = torch.tensor(float(updates), dtype=torch.float32, device=one.device)
        copies = {name: moments[name][number].to(one.device, copy=True).view_as(one) for name in MOMENTS}
        state[one] = {"step": count, **copies}


def put_masters(partition: Partition, vector: torch.Tensor) -> None:
    """Write a local vector [partition.length] into the live masters.

    Raises:
        RunError: when it has another length.
    """
    if vector.shape != (partition.length,):
        raise RunError(f"a slice of {tuple(vector.shape)} does not fit the partition ({partition.length},)")
    for master, part in zip(partition.masters, partition.split(vector), strict=True):
        master.copy_(part)


def split_all(partition: Partition, vectors: Mapping[str, torch.Tensor] | None) -> dict[str, Parts] | None:
    """Each local vector as tensors aligned with the masters."""
    return None if vectors is None else {name: partition.split(vector) for name, vector in vectors.items()}
