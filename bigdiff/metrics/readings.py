"""A run's files of JSON lines, read again while it may still write them; without torch, as a look must be quick."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from bigdiff.config.errors import UsageError

_TAIL: Final = 1 << 16  # bytes that hold the last line
_CHUNK: Final = 1 << 22  # bytes of lines that are parsed at once

Line = dict[str, Any]


def last(metrics: Path) -> Line:
    """The last whole line of a run's metrics; {} where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(metrics.stat().st_size - _TAIL, 0))
            lines = file.read().split(b"\n")[:-1]  # a line that is being written has no end yet
    except FileNotFoundError:
        return {}
    found: Line = json.loads(lines[-1]) if lines else {}
    return found


def chunks(file: Path) -> Iterator[bytes]:
    """The whole lines of a file, some thousand at a time, in memory that does not grow with it; none without a file.

    A last line without its end is being written, or was when the run was killed, and is no line yet.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream, _progress(file) as progress:
        while some := stream.readlines(_CHUNK):
            if not some[-1].endswith(b"\n"):
                some.pop()
            text = b"".join(some)
            progress.update(len(text))
            if text:
                yield text


def objects(chunk: bytes, file: Path, before: int) -> list[Line]:
    """Those of a chunk of `file`, which stands behind `before` lines.

    Raises:
        UsageError: naming the line that is no JSON object.
    """
    numbered = enumerate(chunk.split(b"\n")[:-1], before + 1)
    return [parsed(line, f"{file} line {number}", "delete the line") for number, line in numbered]


def lines(file: Path) -> Iterator[Line]:
    """All of them, one at a time.

    Raises:
        UsageError: as `objects`.
    """
    before = 0
    for chunk in chunks(file):
        found = objects(chunk, file, before)
        before += len(found)
        yield from found


def parsed(text: bytes, where: str, mend: str) -> Line:
    """The JSON object that `text` is.

    Raises:
        UsageError: when it is none, with where it stands and how to mend it.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise UsageError(f"{where} is not JSON ({error}): {mend}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where} is not a JSON object: {mend}")
    return found


def _progress(file: Path) -> Any:  # noqa: ANN401 (tqdm has no types)
    """A bar on a terminal, for a file that takes seconds."""
    return tqdm(
        total=file.stat().st_size, desc=f"reading {file.name}", unit="B", unit_scale=True, delay=2, disable=None
    )
