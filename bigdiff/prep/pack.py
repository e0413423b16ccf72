"""Planned samples to shards: the same bytes each time, a parquet beside each tar."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.data.index import columns, scan
from bigdiff.data.manifest import Shard
from bigdiff.prep.layout import Layout
from bigdiff.prep.plan import CLUSTER_SIZE
from bigdiff.runtime.files import replacing, sha256, write_json

_MODE: Final = 0o644


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to write."""

    output: Path
    number: int
    format: str  # of the picture: the member's extension
    bucket: str = ""  # "WIDTHxHEIGHT" of all its pictures; "" where the set has one shape


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
    shard = Shard(
        name=name,
        samples=len(kept),
        bytes=found.bytes,
        sha256=found.sha256,
        index_sha256=sha256(index),
        bucket=task.bucket,
    )
    write_json(marker, asdict(shard))
    return shard


def _samples(layout: Layout, shard: int) -> pa.Table:
    """The samples of a shard in order, with the unit that holds their bytes and how many samples each stands for."""
    placed = pq.read_table(layout.plan, columns=["row", "unit", CLUSTER_SIZE], filters=[("shard", "=", shard)])
    tables = []
    for unit in sorted(set(placed["unit"].to_pylist())):
        rows = placed.filter(pa.compute.equal(placed["unit"], unit))["row"]
        table = _scored(layout, unit)
        table = table.filter(pa.compute.is_in(table["row"], value_set=rows.combine_chunks()))
        tables.append(table.append_column("unit", pa.array([unit] * len(table), pa.string())))
    found = pa.concat_tables(tables).sort_by("row").combine_chunks()
    assert found["row"].equals(placed["row"]), "the plan is in the order of the rows"
    if CLUSTER_SIZE in found.column_names:  # of the set before, which the plan has counted in
        found = found.drop_columns([CLUSTER_SIZE])
    return found.append_column(CLUSTER_SIZE, placed[CLUSTER_SIZE])


def _scored(layout: Layout, unit: str) -> pa.Table:
    """The samples of a unit, with the scores that this job gave them before the place of their bytes."""
    table = pq.read_table(layout.samples / f"{unit}.parquet")
    file = layout.scores / f"{unit}.parquet"
    if file.exists():
        scores = pq.read_table(file)
        assert scores["row"].equals(table["row"]), f"{file} does not belong to the samples of {unit}"
        for name in scores.column_names[1:]:
            table = table.append_column(name, scores[name])
    return table


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
