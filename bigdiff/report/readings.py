"""What a run wrote of itself in metrics.jsonl: a curve for each tag, and the first and the last line."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bigdiff.config.errors import UsageError
from bigdiff.metrics.readings import chunks, objects
from bigdiff.report.curves import Curve, Thinner

SEEN: Final = "samples_seen"  # what curves are drawn over
_PLACES: Final = ("step", SEEN, "time", "train/samples_seen")  # numbers that say where, not how it goes

_LARGE: Final = 1 << 20  # bytes of a chunk from which pyarrow is worth its import

Columns = dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]  # by tag, places and values


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """Of all lines; empty before the first."""

    count: int  # lines
    first: Mapping[str, float]
    last: Mapping[str, float]
    curves: Mapping[str, Curve]  # by tag

    def curve(self, tag: str) -> Curve:
        """Of a tag; without a reading when the run has none."""
        return self.curves.get(tag, Curve())

    def under(self, prefix: str) -> list[str]:
        """Tags that are `prefix` and a name without a slash, numbers in their order."""
        tags = [tag for tag in self.curves if tag.startswith(prefix)]
        return sorted(tags, key=lambda tag: (len(tag), tag) if tag[-1].isdigit() else (0, tag))


def read(file: Path) -> Readings:
    """In memory that does not grow with the file.

    Raises:
        UsageError: naming the line that is no reading.
    """
    found: defaultdict[str, Thinner] = defaultdict(Thinner)
    count, first, last = 0, dict[str, float](), dict[str, float]()
    for chunk in chunks(file):
        columns = columns_at_once(chunk) if len(chunk) >= _LARGE else None
        for tag, (places, values) in (columns or columns_by_line(chunk, file, count)).items():
            found[tag].add(places, values)
        first = first or json.loads(chunk[: chunk.index(b"\n")])
        last = json.loads(chunk[chunk.rfind(b"\n", 0, -1) + 1 :])
        count += chunk.count(b"\n")
    return Readings(count=count, first=first, last=last, curves={tag: one.curve() for tag, one in found.items()})


def columns_by_line(chunk: bytes, file: Path, before: int) -> Columns:
    """Of a chunk of `file` behind `before` lines, by json.

    Raises:
        UsageError: naming the line that is no reading.
    """
    found: defaultdict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for number, line in enumerate(objects(chunk, file, before), before + 1):
        place = line.get(SEEN)
        if not isinstance(place, (int, float)):
            raise UsageError(f"{file} line {number} has no number {SEEN}: delete the line")
        for tag, value in line.items():
            if not isinstance(value, (int, float)):
                raise UsageError(f"{file} line {number} has a {tag} that is no number: delete the line")
            if tag not in _PLACES:
                places, values = found[tag]
                places.append(place)
                values.append(value)
    return {tag: (np.array(one, np.float64), np.array(other, np.float64)) for tag, (one, other) in found.items()}


def columns_at_once(chunk: bytes) -> Columns | None:
    """The same numbers by pyarrow, on all cores and without an object for each; None for all that is not plain.

    Not plain are what it would refuse or read otherwise than json: names and strings beyond ASCII, null, objects
    and lists in objects, two objects in a line, none in one.
    """
    count = chunk.count(b"\n")
    if not chunk.isascii() or b"null" in chunk or b"[" in chunk or {chunk.count(b"{"), chunk.count(b"}\n")} != {count}:
        return None
    import pyarrow  # 0.4 s, which a short file need not pay
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(pyarrow.BufferReader(chunk))
    except pyarrow.ArrowInvalid:
        return None
    numbers = all(pyarrow.types.is_integer(one.type) or pyarrow.types.is_floating(one.type) for one in table.schema)
    if table.num_rows != count or not numbers or SEEN not in table.column_names:
        return None
    if table[SEEN].null_count:
        return None
    seen, found = table[SEEN].to_numpy().astype(np.float64), {}
    for tag in table.column_names:
        if tag not in _PLACES:
            there = table[tag].is_valid().to_numpy() if table[tag].null_count else slice(None)
            found[tag] = (seen[there], table[tag].drop_null().to_numpy().astype(np.float64))
    return found
