"""Which checkpoints of a run stay, how the others go, and what an earlier life of the run left lying."""

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bigdiff.checkpoint import index, layout
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """A checkpoint as retention sees it."""

    step: int
    loss: float | None  # mean training loss since the checkpoint before


def kept(past: Sequence[Past], rules: Checkpoint) -> set[int]:
    """Steps of the checkpoints that stay: the newest `keep`, every `keep_every`-th, and the best of all.

    The newest, so also the last of a stage, is always among them. Of equally good ones the newer is the best; one whose
    loss is not known, or not finite, is not.
    """
    newest = sorted((one.step for one in past), reverse=True)[: rules.keep]
    milestones = [one.step for one in past if rules.keep_every and one.step % rules.keep_every == 0]
    known = [(one.loss, -one.step) for one in past if one.loss is not None and math.isfinite(one.loss)]
    best = [-min(known)[1]] if rules.keep_best and known else []
    return {*newest, *milestones, *best}


def apply(run: Path, rules: Checkpoint, step: int, mark: str) -> None:
    """Remove the checkpoints of `run` up to the one just made at `step` that do not stay; `mark` keeps lives apart.

    A later one was found damaged, or another life makes it: it counts for nothing here, so that it drives none out.
    """
    folders = [folder for folder in layout.saved(run) if layout.step_of(folder) <= step]
    past = [Past(step=layout.step_of(folder), loss=_loss(folder) if rules.keep_best else None) for folder in folders]
    staying = kept(past, rules)
    for folder, one in zip(folders, past, strict=True):
        if one.step not in staying:
            remove(folder, mark)


def _loss(folder: Path) -> float | None:
    try:
        return index.read(folder).loss
    except (index.Damage, UsageError):
        return None  # a damaged one is no best one; whoever loads it says so


def remove(folder: Path, mark: str) -> None:
    """Remove a checkpoint, or what was one: first its name, so that nobody finds half of it, then its files.

    A reader in the middle of it loses it and says so (bigdiff.checkpoint.reader).
    """
    aside = layout.aside(folder, layout.REMOVING, mark)
    with suppress(FileNotFoundError):  # another life removed it
        folder.rename(aside)
        # best effort: a network file system keeps a file that somebody reads; the next life clears it
        shutil.rmtree(aside, ignore_errors=True)


def clear(run: Path) -> None:
    """Remove what earlier lives left, and give back its name to a checkpoint whose replacement did not come.

    Called once, at the start of a life, by one process: what comes later may belong to this life.
    """
    folder = layout.checkpoints(run)
    for replaced in folder.glob(f"{layout.REPLACED}*"):
        if not layout.restored(replaced).exists():
            replaced.rename(layout.restored(replaced))
    for prefix in (layout.WRITING, layout.REPLACED, layout.REMOVING):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # best effort: a rank of that life may still write to it
    for probe in folder.glob(f"{layout.PROBE}*"):
        probe.unlink(missing_ok=True)
