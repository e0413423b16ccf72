"""Is there space for what a run keeps: a full disk ends it in days, the question takes a second."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.models.ema import profiles


def checkpoint_bytes(stage: Stage, parameters: int) -> int:
    """Of one checkpoint, in fp32: masters, AdamW's two moments and each average."""
    return 4 * parameters * (3 + len(profiles(stage.ema)))


def most_bytes(stage: Stage, parameters: int) -> int:
    """That a stage has on the disk at most: what it keeps, the one being written, and its snapshots of averages."""
    rules = stage.checkpoint
    saves = -(-stage.steps // rules.every)
    milestones = stage.steps // rules.keep_every if rules.keep_every else 0
    checkpoints = min(saves, rules.keep + 1 + milestones + rules.keep_best)
    snapshots = stage.steps // stage.ema.snapshot_every if stage.ema.snapshot_every else 0
    averages = 4 * parameters * len(stage.ema.power)
    return checkpoints * checkpoint_bytes(stage, parameters) + snapshots * averages


def check(stages: Sequence[Stage], parameters: Mapping[str, int]) -> None:
    """Refuse stages that would fill up the disk of their runs; `parameters` by stage, those of all its networks.

    A quota that is below the file system's free space is not seen.

    Raises:
        UsageError: naming the folder, what is needed and what is free.
    """
    for runs in dict.fromkeys(stage.runs for stage in stages):
        wanted = {
            stage.name: most_bytes(stage, parameters[stage.name]) - used(layout.run_folder(runs, stage.name))
            for stage in stages
            if stage.runs == runs
        }
        needed, free = sum(max(one, 0) for one in wanted.values()), shutil.disk_usage(_existing(Path(runs))).free
        if needed > free:
            raise UsageError(
                f"runs={runs} has {free / 1e9:,.1f} GB free, the checkpoints of {', '.join(wanted)} need "
                f"{needed / 1e9:,.1f} GB more: free some, name another folder as runs, or lower checkpoint.keep"
            )


def used(run: Path) -> int:
    """Bytes of a run's checkpoints and snapshots so far."""
    folders = (layout.checkpoints(run), layout.snapshots(run))
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
