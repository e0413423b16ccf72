"""Samples to shards: duplicates left out, spread evenly, the same bytes each time, a parquet beside each tar."""

import io
import json
import math
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Pack
from bigdiff.data.index import columns, scan
from bigdiff.data.manifest import Shard
from bigdiff.prep.layout import Layout
from bigdiff.runtime.files import replacing, sha256, write_json

DUPLICATE: Final = "same picture as another row's"
_MODE: Final = 0o644
_ROW_GROUP: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to write."""

    output: Path
    number: int
    format: str  # of the picture: the member's extension


def plan(layout: Layout, pack: Pack) -> int:
    """Decide which sample goes into which shard; returns the number of shards.

    Of samples with the same stored bytes the first in order stays. The samples keep their order and are spread so that
    shards differ by one at most: a short last shard would weigh on a reader that shuffles shard by shard.

    Raises:
        RunError: when no sample is left.
    """
    if not layout.plan.exists():
        with duckdb.connect() as base, replacing(layout.plan) as temporary:
            base.execute(f"SET temp_directory = '{_quoted(layout.work / 'duckdb')}'")
            base.execute(
                "CREATE VIEW samples AS SELECT row, sha256, parse_filename(filename, true) AS unit FROM "
                f"read_parquet('{_quoted(layout.samples)}/*.parquet', filename = true)"
            )
            ranked = "SELECT row, unit, row_number() OVER (PARTITION BY sha256 ORDER BY row) AS copy FROM samples"
            total = _one(base, f"SELECT count(*) FROM ({ranked}) WHERE copy = 1")
            shards = math.ceil(total / pack.samples_per_shard)
            placed = f"(row_number() OVER (ORDER BY row) - 1) * {shards} // {max(total, 1)} AS shard"
            base.execute(
                f"COPY (SELECT row, unit, {placed} FROM ({ranked}) WHERE copy = 1 ORDER BY row) "
                f"TO '{_quoted(temporary)}' (FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})"
            )
    rows = pq.read_metadata(layout.plan).num_rows
    if not rows:
        raise RunError(
            f"no picture of the selection could be stored: {layout.rejected} and the log of each part say why"
        )
    return math.ceil(int(rows) / pack.samples_per_shard)


def duplicates(layout: Layout) -> list[dict[str, Any]]:
    """The samples that the plan leaves out, in order: row, url, unit, offset, length."""
    with duckdb.connect() as base:
        found = base.execute(
            'SELECT row, url, parse_filename(filename, true) AS unit, "offset", length FROM '
            f"read_parquet('{_quoted(layout.samples)}/*.parquet', filename = true) "
            f"WHERE row NOT IN (SELECT row FROM read_parquet('{_quoted(layout.plan)}')) ORDER BY row"
        )
        names = [each[0] for each in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def write_shard(task: Task) -> Shard:
    """Write one shard, unless that is done: `NNNNN.tar`, `NNNNN.parquet`, then its checksum in the work folder."""
    layout = Layout(task.output)
    name = f"{task.number:05d}"
    marker = layout.shards / f"{name}.json"
    if marker.exists():
        return Shard(**json.loads(marker.read_text()))
    samples = _samples(layout, task.number)
    tar = task.output / f"{name}.tar"
    with replacing(tar) as temporary:
        _write_tar(temporary, layout, samples, task.format)
    found = scan(tar)
    kept = samples.drop_columns(["row", "offset", "length", "unit"])
    for column, values in columns(kept["key"].to_pylist(), found.members).items():
        kept = kept.append_column(column, pa.array(values))
    index = task.output / f"{name}.parquet"
    with replacing(index) as temporary:
        pq.write_table(kept, temporary)
    shard = Shard(name=name, samples=len(kept), bytes=found.bytes, sha256=found.sha256, index_sha256=sha256(index))
    write_json(marker, asdict(shard))
    return shard


def _samples(layout: Layout, shard: int) -> pa.Table:
    """The samples of a shard in order, with the unit that holds their bytes."""
    placed = pq.read_table(layout.plan, columns=["row", "unit"], filters=[("shard", "=", shard)])
    tables = []
    for unit in sorted(set(placed["unit"].to_pylist())):
        rows = placed.filter(pa.compute.equal(placed["unit"], unit))["row"]
        table = pq.read_table(layout.samples / f"{unit}.parquet")
        table = table.filter(pa.compute.is_in(table["row"], value_set=rows.combine_chunks()))
        tables.append(table.append_column("unit", pa.array([unit] * len(table), pa.string())))
    return pa.concat_tables(tables).sort_by("row").combine_chunks()


def _write_tar(path: Path, layout: Layout, samples: pa.Table, extension: str) -> None:
    """A plain USTAR file: KEY.json, KEY.{jpg,png}, KEY.txt of each sample, in order; no time, owner or machine in it.

    Python's tarfile rather than webdataset's writer: the same format, without importing torch into each process.
    """
    with ExitStack() as opened, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        sources: dict[str, int] = {}
        for sample in samples.to_pylist():
            unit, offset, length = sample.pop("unit"), sample.pop("offset"), sample.pop("length")
            if unit not in sources:
                sources[unit] = opened.enter_context((layout.pictures / unit).open("rb")).fileno()
            del sample["row"]
            picture = os.pread(sources[unit], length, offset)
            for suffix, content in _members(sample, picture, extension):
                member = tarfile.TarInfo(f"{sample['key']}.{suffix}")
                member.size, member.mode = len(content), _MODE
                tar.addfile(member, io.BytesIO(content))


def _members(sample: dict[str, Any], picture: bytes, extension: str) -> Iterator[tuple[str, bytes]]:
    facts = json.dumps(sample, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    yield from sorted({extension: picture, "json": facts.encode(), "txt": sample["caption"].encode()}.items())


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _one(base: duckdb.DuckDBPyConnection, query: str) -> int:
    row = base.execute(query).fetchone()
    assert row is not None
    return int(row[0])
