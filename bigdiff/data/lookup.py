"""Where a sample lies in a set, by its key, URL or hash, and at which positions of a run's history it was read."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.data.course import Course
from bigdiff.data.history import Stretch, skips
from bigdiff.data.manifest import Manifest
from bigdiff.data.origin import checked, origin, remote
from bigdiff.data.recount import Lost, Sample, lost_samples

THREADS: Final = 8
Column = Literal["key", "url", "sha256"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a search of a set's index files found."""

    places: tuple[tuple[int, int], ...]  # shard and row
    unread: tuple[str, ...]  # index files that cannot be read, and why
    without: int  # index files that do not have the column


@dataclass(frozen=True, kw_only=True, slots=True)
class Replaced:
    """A position where the sample stood and was not used."""

    position: int
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """A position where the sample was read in a step that moved no weights."""

    position: int
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """What a history did with one sample."""

    sample: Sample
    positions: tuple[int, ...]  # where it was trained on, in its own place or as a substitute
    steps: tuple[int, ...]  # of these positions
    substitute: tuple[int, ...]  # those of the positions where it stood in for another
    replaced: tuple[Replaced, ...]
    idle: tuple[Idle, ...]


def open_file(location: str, name: str) -> IO[bytes]:
    """A small file of a set, local or remote.

    Raises:
        OSError: when it is not there or cannot be read.
    """
    if not remote(location):
        return (Path(location) / checked(name)).open("rb")
    with urlopen(origin(location).address(name), timeout=60) as answer:
        return io.BytesIO(answer.read())


def rows(location: str, manifest: Manifest, column: Column, value: str, quiet: bool) -> Rows:
    """The rows of a set whose `column` is `value`; reads that column alone, where its statistics allow a match.

    Raises:
        UsageError: when no index file of the set has the column.
    """
    names = [f"{shard.name}{manifest.index}" for shard in manifest.shards]

    def search(name: str) -> list[int] | str | None:
        try:
            with open_file(location, name) as stream:
                return _search(pq.ParquetFile(stream), column, value)
        except (OSError, pa.ArrowException) as error:
            return f"{location}/{name} ({type(error).__name__}: {str(error).splitlines()[0]})"

    places: list[tuple[int, int]] = []
    unread: list[str] = []
    without = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for shard, found in enumerate(tqdm(pool.map(search, names), total=len(names), unit=" files", disable=quiet)):
            if found is None:
                without += 1
            elif isinstance(found, str):
                unread.append(found)
            else:
                places += [(shard, row) for row in found]
    if without == len(names):
        raise UsageError(f"the index files of {location} have no column {column!r}: ask by another one")
    return Rows(places=tuple(places), unread=tuple(unread), without=without)


def _search(file: pq.ParquetFile, column: Column, value: str) -> list[int] | None:
    """Row numbers of one index file; None when it has no such column."""
    names = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
    if column not in names:
        return None
    at, before = names.index(column), 0
    found: list[int] = []
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        if _may_hold(about.column(at).statistics, value):
            values = file.read_row_group(group, columns=[column])[column].cast(pa.string())
            equal = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)
            found += (before + np.flatnonzero(equal)).tolist()
        before += about.num_rows
    return found


def _may_hold(statistics: Any, value: str) -> bool:  # noqa: ANN401 (pyarrow is untyped)
    if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, str):
        return True
    return bool(statistics.min <= value <= statistics.max)


def sightings(stretches: Sequence[Stretch], course: Course, samples: Sequence[Sample]) -> list[Sighting]:
    """What the history did with each of `samples`."""
    lost = [one for stretch in stretches for one in lost_samples(stretch, course.total)]
    by_position = {one.position: one for one in lost}
    stood_in: dict[Sample, list[int]] = {sample: [] for sample in samples}
    for one in lost:
        read = course.substitute(one.position, len(one.samples))
        if read in stood_in:
            stood_in[read].append(one.position)
    return [_sighting(stretches, course, sample, by_position, stood_in[sample]) for sample in stood_in]


def _sighting(
    stretches: Sequence[Stretch],
    course: Course,
    sample: Sample,
    lost: dict[int, Lost],
    stood_in: list[int],
) -> Sighting:
    total = course.total
    begin, end = (stretches[0].begin, stretches[-1].end) if stretches else (0, 0)
    placed = [position for position in course.find(*sample, end * total) if position >= begin * total]
    read = sorted([position for position in placed if position not in lost] + stood_in)
    idle = [
        Idle(position=position, step=position // total, reason=skip.reason)
        for skip in skips(stretches)
        for position in read
        if skip.begin <= position // total < skip.end
    ]
    skipped = {one.position for one in idle}
    read = [position for position in read if position not in skipped]
    replaced = [
        Replaced(position=position, step=position // total, reason=lost[position].reasons[0])
        for position in placed
        if position in lost
    ]
    return Sighting(
        sample=sample,
        positions=tuple(read),
        steps=tuple(position // total for position in read),
        substitute=tuple(sorted(set(stood_in) - skipped)),
        replaced=tuple(replaced),
        idle=tuple(idle),
    )
