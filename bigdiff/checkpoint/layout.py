"""Names of a run's folders and files, the pointer to the newest checkpoint, and which ones to keep."""

import re
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
INDEX = "index.json"
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


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    match = _STEP.fullmatch(folder.name)
    assert match, f"{folder} is not a checkpoint folder"
    return int(match.group(1))


def saved(run: Path) -> list[Path]:
    """Checkpoint folders with an index, newest first; unfinished ones have another name and do not count."""
    found = [
        path for path in checkpoints(run).glob("step-*") if _STEP.fullmatch(path.name) and (path / INDEX).is_file()
    ]
    return sorted(found, key=step_of, reverse=True)


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, unverified; None before the first."""
    return next(iter(saved(run)), None)


def superseded(folders: list[Path], keep: int) -> list[Path]:
    """Those of `folders` (newest first) that retention deletes."""
    return folders[keep:]


def shard(rank: int, size: int) -> str:
    """File name of one rank's share."""
    return f"rank-{rank:05d}-of-{size:05d}.safetensors"
