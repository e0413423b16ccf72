"""What launch/evaluate.py has found of the weights that are exported, for their card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import UsageError

ORIGIN: Final = "checkpoint.json"  # beside its results: what an evaluation judged
RESULTS: Final = "results.json"
COLUMNS: Final = ("guidance", "images", "fid", "clip_score", "clip_cosine", "cmmd", "precision", "recall")
_TOLD: Final = ("prompts", "real", "scheduler", "steps", "seed", "dtype")  # settings that numbers depend on


def scores(run: Path, checkpoint: Path, which: str) -> list[str]:
    """Lines of the card: a table for each finished evaluation of just these weights, in the run's folder or one deeper.

    Raises:
        UsageError: for a file that launch/evaluate.py did not write.
    """
    lines: list[str] = []
    for file in sorted([*run.glob(f"*/{RESULTS}"), *run.glob(f"*/*/{RESULTS}")]):
        origin = file.with_name(ORIGIN)
        try:
            judged = json.loads(origin.read_bytes()) if origin.is_file() else {}
            same = judged and (Path(judged["checkpoint"]).name, judged["about"]) == (checkpoint.name, which)
            lines += _table(str(file.parent.relative_to(run)), json.loads(file.read_bytes())) if same else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            sentence = f"{file.parent} is not what launch/evaluate.py writes ({error!r}): run it again"
            raise UsageError(sentence) from error
    return lines


def _table(name: str, found: dict[str, Any]) -> list[str]:
    points = found["points"]
    settings = ", ".join(f"{one} {found['settings'][one]}" for one in _TOLD if found["settings"].get(one))
    lines = [f"Judged by launch/evaluate.py ({name}: {settings}):", ""]
    lines += [*table(points), "", *(f"- **{one}**: {text}" for one, text in found["means"].items())]
    if any(point.get("singular") for point in points):
        lines += ["- FID is of no more pictures than features: far too high, and no number to compare."]
    return [*lines, ""]


def table(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table of an evaluation's points, with the columns that have values."""
    columns = [name for name in COLUMNS if any(point.get(name) is not None for point in points)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_said(point.get(name)) for name in columns) + " |" for point in points]


def _said(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
