"""The samples behind run positions, by key and URL: for messages and records, not for the hot path."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed
from bigdiff.data.recount import Sample
from bigdiff.data.sets import ShardSet
from bigdiff.data.shards import index_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What was read at a position."""

    position: int
    source: str  # location of its set
    shard: str
    row: int
    key: str
    url: str  # "" where the set has none


def read_at(course: Course, consumed: Sequence[Consumed], position: int) -> Sample:
    """Source, shard and row of what was read at `position`, the substitute if there was one."""
    attempts = sum(lost.position == position for batch in consumed for lost in batch.substituted)
    if attempts:
        return course.substitute(position, attempts)
    step, offset = divmod(position, course.total)
    picks = course.locate(step, offset, offset + 1)
    return int(picks.sources[0]), int(picks.shards[0]), int(picks.rows[0])


def named(
    course: Course, sets: Sequence[ShardSet], consumed: Sequence[Consumed], positions: Sequence[int]
) -> list[Named]:
    """Who stood at `positions` of micro-batches; reads each of their shards' index files once more."""
    samples = {position: read_at(course, consumed, position) for position in positions}
    by_shard: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, (source, shard, _) in samples.items():
        by_shard[source, shard].append(position)
    found: dict[int, Named] = {}
    for (source, shard), members in by_shard.items():
        one = sets[source]
        index = _index(one, shard)
        for position in members:
            row = samples[position][2]
            found[position] = Named(
                position=position,
                source=one.location,
                shard=one.manifest.shards[shard].name,
                row=row,
                key=_text(index, "key", row),
                url=_text(index, "url", row),
            )
    return [found[position] for position in positions]


def _index(one: ShardSet, shard: int) -> pa.Table:
    return index_table(one.storage.read(one.manifest.shards[shard].name + one.manifest.index), ["key", "url"])


def _text(index: pa.Table, column: str, row: int) -> str:
    value: Any = index[column][row].as_py() if column in index.column_names else None
    return "" if value is None else str(value)
