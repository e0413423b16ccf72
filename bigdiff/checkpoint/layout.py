"""Names of a run's folders and files.

`checkpoints/step-00000800` is whole: it got its name by a rename. What is written, replaced or removed has another one.
"""

import re
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
INDEX = "index.json"
PIECES = "pieces.safetensors"
WRITING, REPLACED, REMOVING, PROBE = "writing-", "replaced-", "removing-", "probe-"  # before a checkpoint's name
_STEP = re.compile(r"step-(\d{8,})")


def run_folder(runs: str, name: str) -> Path:
    """Where the stage `name` lives."""
    return Path(runs) / name


def checkpoints(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def checkpoint(run: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return checkpoints(run) / f"step-{step:08d}"


def snapshots(run: Path) -> Path:
    """The folder of a run's stored power-function averages."""
    return run / "averages"


def snapshot(run: Path, step: int) -> Path:
    """The folder of one of them."""
    return snapshots(run) / checkpoint(run, step).name


def steps(folder: Path) -> list[Path]:
    """The folders in `folder` that are named after a step, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    match = _STEP.fullmatch(folder.name)
    assert match, f"{folder} is not a checkpoint folder"
    return int(match.group(1))


def folders(run: Path) -> list[Path]:
    """All checkpoint folders, newest first; unfinished ones have another name and do not count."""
    return steps(checkpoints(run))[::-1]


def saved(run: Path) -> list[Path]:
    """Checkpoint folders with an index, newest first."""
    return [path for path in folders(run) if (path / INDEX).is_file()]


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, unverified; None before the first."""
    return next(iter(saved(run)), None)


def aside(folder: Path, prefix: str, mark: str) -> Path:
    """Another name for a checkpoint's folder: `prefix` says why, `mark` keeps lives and attempts apart."""
    return folder.with_name(f"{prefix}{folder.name}-{mark}")


def restored(aside: Path) -> Path:
    """The name that a folder of another name (`aside`) had, or was to get."""
    match = _STEP.search(aside.name)
    assert match, f"{aside} never was a checkpoint folder"
    return aside.with_name(match.group(0))


def shard(rank: int, size: int) -> str:
    """File name of one rank's share."""
    return f"rank-{rank:05d}-of-{size:05d}.safetensors"


def record(rank: int, size: int) -> str:
    """File name of what a rank says when its share is on the disk; gone once the index holds it."""
    return f"rank-{rank:05d}-of-{size:05d}.json"
