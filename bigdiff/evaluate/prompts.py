"""The prompts of an evaluation: a text file with one a line, or a column of a parquet file."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.errors import UsageError
from bigdiff.evaluate.sampling import read_prompts

COLUMNS: Final = ("caption", "prompt", "text", "TEXT")  # where captions usually are


def read(path: Path, column: str = "") -> list[str]:
    """All prompts, in the file's order; `column` of a parquet file, or the first of COLUMNS that it has.

    Raises:
        UsageError: when it cannot be read, holds none, has no such column, or has an empty line or row.
    """
    if path.suffix != ".parquet":
        if column:
            raise UsageError(f"--column {column} has no effect: {path} is read as text, a prompt a line; leave it out")
        return read_prompts(path)
    try:
        names = pq.read_schema(path).names
        chosen = column or next((name for name in COLUMNS if name in names), "")
        if chosen not in names:
            raise UsageError(
                f"{path} has no column {column or 'such as caption'}: name one of {', '.join(names)} with --column"
            )
        rows = pq.read_table(path, columns=[chosen])[chosen].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read the prompts in {path}: {error}") from error
    if not rows:
        raise UsageError(f"{path} holds no prompts: it has no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, str) or not row.strip():
            raise UsageError(f"{path} row {number} of column {chosen} is no text, or empty: leave the row out")
    return [row.strip() for row in rows]


def fingerprint(prompts: Sequence[str]) -> str:
    """Sha256 of the prompts in their order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
