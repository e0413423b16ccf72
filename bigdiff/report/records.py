"""A run's own files, read as they are while it may still write them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bigdiff.config.errors import UsageError


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time; none where there is no file.

    A last line without its end is being written, or was when the run was killed, and is no object yet.

    Raises:
        UsageError: naming the line that is none.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream, _progress(file) as progress:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            progress.update(len(line))
            yield _object(line, f"{file} line {number}", "delete the line")


def content(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file.

    Raises:
        UsageError: when it holds none.
    """
    if not file.is_file():
        return {}
    return _object(file.read_bytes(), str(file), "remove the file, or have it written again")


def _object(text: bytes, where: str, mend: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:  # also bytes that are no UTF-8
        raise UsageError(f"{where} is not JSON ({error}): {mend}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where} is not a JSON object: {mend}")
    return found


def _progress(file: Path) -> Any:  # noqa: ANN401 (tqdm has no types)
    """A bar on a terminal, for a file that takes seconds."""
    return tqdm(
        total=file.stat().st_size, desc=f"reading {file.name}", unit="B", unit_scale=True, delay=2, disable=None
    )
