"""A run's own JSON files, read as they are."""

from pathlib import Path
from typing import Any

from bigdiff.metrics.readings import parsed


def content(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file.

    Raises:
        UsageError: when it holds none.
    """
    if not file.is_file():
        return {}
    return parsed(file.read_bytes(), str(file), "remove the file, or have it written again")
