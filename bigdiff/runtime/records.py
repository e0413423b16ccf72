"""Lists of records that a run keeps, as JSON: one writer at a time, whole or not at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bigdiff.config.errors import RunError
from bigdiff.runtime.files import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record")


def read(file: Path, record: Callable[[dict[str, Any]], Record], what: str) -> list[Record]:
    """The records of a file, in its order, each from its keys and values; none where there is no file.

    Raises:
        RunError: when the file is not a list of what `record` takes; `what` it should be, for a person.
    """
    if not file.exists():
        return []
    try:
        return [record(one) for one in json.loads(file.read_text())]
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is not a list of {what} ({error}): remove it") from error


def write(file: Path, every: Sequence["DataclassInstance"]) -> None:
    """Replace the file; on the disk when this returns."""
    write_json(file, [asdict(one) for one in every])
