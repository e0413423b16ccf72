"""The samples of a finished image set as those of a new job: nothing is fetched, decoded or encoded again.

The new job's pictures are links to the old set's tars. Keys, captions, sizes and scores stay as they are; what a scorer
of the new job gives takes the place of a column of that name.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.index import PARTS, located
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep.buckets import Fit, are_whole, parse
from bigdiff.prep.layout import Layout
from bigdiff.prep.phash import phash
from bigdiff.prep.picture import STORED_PIXELS, Rejected, decode
from bigdiff.runtime.files import replacing, sha256

PHASH: Final = "phash"  # the column of the perceptual hashes
_NEEDED: Final = ("key", "caption", "url", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard of the old set: it becomes a unit of the new job, of the same name."""

    output: Path
    images: Path
    shard: Shard
    first: int  # its first sample's number in the set
    format: str  # of the pictures, the member's extension
    without: tuple[str, ...]  # columns that the new job makes itself


def open_set(folder: Path) -> Manifest:
    """The set to begin with.

    Raises:
        UsageError: when it is no image set of build_shards.py.
    """
    found = manifest.read(folder, "images")
    if found.contract.get("format") not in ("jpg", "png") or "resolution" not in found.contract:
        raise UsageError(
            f"{folder} says nothing of how its pictures are stored: name a set of build_shards.py or repack_shards.py"
        )
    return found


def fit(found: Manifest) -> Fit:
    """How the set's pictures were fitted before they were stored."""
    side = found.contract["resolution"]
    shapes = tuple(parse(name) for name in found.contract.get("buckets", [])) or ((side, side),)
    return Fit(shapes=shapes, whole=are_whole(found.contract))


def tasks(output: Path, images: Path, found: Manifest, without: tuple[str, ...]) -> list[Task]:
    """One a shard, in order."""
    listed, first = [], 0
    for shard in found.shards:
        listed.append(
            Task(
                output=output,
                images=images.resolve(),
                shard=shard,
                first=first,
                format=found.contract["format"],
                without=without,
            )
        )
        first += shard.samples
    return listed


def adopt(task: Task) -> str:
    """Take over one shard, unless that is done; returns its name.

    Raises:
        UsageError: when its parquet lacks a column.
        RunError: when its tar or parquet is not the one that the manifest names.
    """
    layout = Layout(task.output)
    final = layout.samples / f"{task.shard.name}.parquet"
    if final.exists():
        return task.shard.name
    tar, index = (task.images / f"{task.shard.name}{ending}" for ending in (".tar", ".parquet"))
    for file, wanted in ((tar, task.shard.sha256), (index, task.shard.index_sha256)):
        if not file.is_file() or sha256(file) != wanted:
            raise RunError(f"{file} is not what the set's manifest says: it is damaged or was replaced; restore it")
    link = layout.pictures / task.shard.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(tar)
    with replacing(final) as temporary:
        samples = _samples(task, pq.read_table(index))
        pq.write_table(samples if PHASH in samples.column_names else _hashed(samples, tar), temporary)
    return task.shard.name


def _hashed(samples: pa.Table, tar: Path) -> pa.Table:
    """With the perceptual hashes that sets of earlier versions lack, which takes a decoding of each picture."""
    hashes = []
    with tar.open("rb") as source:
        for sample in samples.select(["key", "offset", "length"]).to_pylist():
            try:
                picture = decode(os.pread(source.fileno(), sample["length"], sample["offset"]), STORED_PIXELS)
            except Rejected as error:
                raise RunError(f"{tar} is damaged: picture {sample['key']} ({error.cause})") from error
            hashes.append(phash(picture))
    return samples.append_column(PHASH, pa.array(hashes, pa.int64()))


def _samples(task: Task, index: pa.Table) -> pa.Table:
    place = [f"{task.format}_offset", f"{task.format}_length"]
    for column in (*_NEEDED, *place):
        if column not in index.column_names:
            raise UsageError(f"{task.images / task.shard.name}.parquet has no column {column!r}: make the set again")
    members = {f"{end}_{part}" for end in located(index.column_names) for part in PARTS}
    kept = [name for name in index.column_names if name not in members and name not in task.without]
    rows = pa.array(range(task.first, task.first + len(index)), pa.int64())
    table = index.select(kept).add_column(0, "row", rows)
    for name, column in zip(("offset", "length"), place, strict=True):
        table = table.append_column(name, pc.cast(index[column], pa.int64()))
    return table
