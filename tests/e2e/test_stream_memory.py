"""Epoch after epoch in the same memory, with the same files open, whatever is damaged on the way."""

import gc
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from bigdiff.data import manifest
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.member import pack
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

SHARDS, ROWS, LENGTH = 48, 100, 8
ALLOWED = 4 << 20  # bytes of growth; an epoch has 20 MB of samples


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    shards, moments = [], np.zeros((8, 16, 16), np.float16)
    for number in range(SHARDS):
        tar, places = tmp_path / f"{number:05d}.tar", []
        with tarfile.open(tar, "w") as archive:
            for row in range(ROWS):
                content = pack(moments + np.float16(number), np.full(LENGTH, row, np.uint16))
                member = tarfile.TarInfo(f"{number:03d}{row:03d}.safetensors")
                member.size = len(content)
                places.append((archive.offset + tarfile.BLOCKSIZE, len(content), xxhash.xxh3_64_intdigest(content)))
                archive.addfile(member, io.BytesIO(content))
        columns = dict(zip(("offset", "length", "xxh3"), zip(*places, strict=True), strict=True))
        arrays = {
            f"safetensors_{name}": pa.array(many, pa.uint64() if name == "xxh3" else pa.int64())
            for name, many in columns.items()
        }
        pq.write_table(pa.table(arrays), tar.with_suffix(".parquet"))
        shards.append(manifest.Shard(name=tar.stem, samples=ROWS, bytes=tar.stat().st_size, sha256="not read"))
    contract = {"shape": [8, 16, 16], "text_length": LENGTH}
    manifest.write(tmp_path, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract))
    return tmp_path


def memory() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024


def files() -> int:
    gc.collect()  # earlier tests' files, too
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("harmed", [False, True])
def test_memory_and_files_are_flat_over_three_epochs(latents: Path, harmed: bool) -> None:
    if harmed:
        (latents / "00007.tar").unlink()
        (latents / "00021.tar").write_bytes(b"")
    before = files()
    with LatentSet(str(latents)) as one:
        source = Source(name="set", sizes=one.manifest.sizes)
        course = Course(sources=(source,), seed=1, window=4, lanes=2, total=32)
        part = Slice(total=32, micro=32, rank=0, size=1)
        stream = batches(LatentReader([one]), course, part, 0, Ahead(), Quarantine(warn=lambda line: None))
        used, opened = [], []
        for _ in range(4):  # the first epoch fills what is kept
            for _ in range(SHARDS * ROWS // 32):
                next(stream)
            used.append(memory())
            opened.append(files())
        stream.close()
    assert max(used[1:]) - used[0] < ALLOWED, used
    assert max(opened) <= before + 2 * 2 * (4 + 2)  # two lanes, two windows each, and shards at the lanes' ends
    assert files() == before
