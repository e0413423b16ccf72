"""A run's metrics.jsonl, read again; without torch, as a look at a run must be quick."""

import json
from pathlib import Path
from typing import Any, Final

_TAIL: Final = 1 << 16  # bytes that hold the last line


def last(metrics: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics; {} where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(metrics.stat().st_size - _TAIL, 0))
            lines = file.read().split(b"\n")[:-1]  # a line that is being written has no end yet
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def every(metrics: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics, the oldest first; none where there is no file."""
    try:
        lines = metrics.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
