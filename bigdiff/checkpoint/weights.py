"""All weights of what a run makes, by name: those that a checkpoint holds and those that were never trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bigdiff.checkpoint import frozen, reader, snapshots
from bigdiff.checkpoint.index import Damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """Weights by name, fp32 on the CPU, and what they are, in words."""

    tensors: dict[str, torch.Tensor]
    about: str


def complete(folder: Path, which: str) -> Complete:
    """The trained weights `which` (bigdiff.config.averages) of a checkpoint, and the run's frozen ones.

    Raises:
        Damaged: when the checkpoint is, or was removed while it was read.
        UsageError: when either cannot be read, or the checkpoint does not hold `which`.
    """
    run, problem = folder.parent.parent, reader.damaged(folder)
    if problem:
        raise reader.unusable(folder, problem)
    asked = snapshots.asked(run, folder, which)
    kept = frozen.read(run, reader.read_index(folder).identity.frozen)
    try:
        return Complete(tensors={**kept, **asked.named()}, about=asked.about)
    except Damage as error:
        raise reader.unusable(folder, str(error)) from error


def names(folder: Path) -> set[str]:
    """The names that `complete` gives, from the headers alone.

    Raises:
        UsageError: when the checkpoint's index or the frozen weights cannot be read.
    """
    found, run = reader.read_index(folder), folder.parent.parent
    trained = {placed.name for placed in found.layout}
    if not found.identity.frozen:
        return trained
    if not (run / frozen.NAME).is_file():
        raise frozen.other(run)
    try:
        with safe_open(run / frozen.NAME, framework="pt") as stored:
            return trained | set(stored.keys())
    except (SafetensorError, OSError) as error:
        raise frozen.unreadable(run, error) from error
