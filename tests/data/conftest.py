"""Small latent sets in real tars, and what stock img2dataset leaves behind, written by its own writer."""

import ctypes
import hashlib
import io
import json
import mmap
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from bigdiff.data import manifest
from bigdiff.data.member import pack
from bigdiff.runtime.files import sha256

SHAPES = {"": (4, 2, 2), "16x24": (4, 3, 2), "24x16": (4, 2, 3), "256x256": (8, 32, 32)}
LENGTH = 3
COLUMNS = {"key": pa.string(), "url": pa.string(), "safetensors_offset": pa.int64(), "safetensors_length": pa.int64()}
INDEX = pa.schema([*COLUMNS.items(), ("safetensors_xxh3", pa.uint64())])
Sample = tuple[np.ndarray, np.ndarray]
StockSet = Callable[..., Path]


def photo(shard: int, row: int) -> Image.Image:
    """Soft colours, of a size of its own."""
    small = np.random.default_rng((shard, row)).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(small).resize((60 + 3 * row, 50 + 7 * shard), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.fixture
def stock_set(tmp_path: Path) -> StockSet:
    """Make an img2dataset output of the given shard sizes; every third row is one that could not be fetched."""

    def make(*sizes: int, name: str = "stock", kind: str = "jpg") -> Path:
        from img2dataset.writer import WebDatasetSampleWriter  # imports for seconds

        folder = tmp_path / name
        folder.mkdir()
        texts = ("url", "caption", "key", "status", "error_message")
        sides = ("width", "height", "original_width", "original_height")
        schema = pa.schema([(one, pa.string()) for one in texts] + [(one, pa.int32()) for one in sides])
        for shard, samples in enumerate(sizes):
            writer = WebDatasetSampleWriter(shard, str(folder), True, 5, schema, kind)
            fetched = row = 0
            while fetched < samples:
                failed = row % 3 == 2
                image = photo(shard, row)
                meta = dict.fromkeys(sides) | {
                    "url": f"http://example.org/{shard}/{row}",
                    "caption": f"picture {row} of shard {shard}, \u00e9",
                    "key": f"{shard:05d}{row:04d}",
                    "status": "failed_to_download" if failed else "success",
                    "error_message": "HTTP Error 404: Not Found" if failed else None,
                }
                if not failed:
                    meta |= dict(zip(sides, (*image.size, *image.size), strict=True))
                content = None if failed else encoded(image, {"jpg": "JPEG"}.get(kind, kind), quality=95)
                writer.write(content, meta["key"], meta["caption"], meta)
                fetched += not failed
                row += 1
            writer.close()
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": row, "successes": fetched}))
        return folder

    return make


def drawn(name: str, bucket: str, shard: int, row: int) -> Sample:
    random = np.random.default_rng([*name.encode(), shard, row])
    moments = random.normal(size=SHAPES[bucket]).astype(np.float16)
    return moments, random.integers(0, 49408, LENGTH).astype(np.uint16)


@pytest.fixture(scope="session")
def latent_sample() -> Callable[[str, str, int, int], Sample]:
    """Moments and tokens of (folder's name, bucket, shard, row)."""
    return drawn


def write_shard(folder: Path, number: int, size: int, bucket: str) -> manifest.Shard:
    tar, table = folder / f"{number:05d}.tar", []
    with tarfile.open(tar, "w") as archive:
        for row in range(size):
            content = pack(*drawn(folder.name, bucket, number, row))
            member = tarfile.TarInfo(f"{number}{row:03d}.safetensors")
            member.size = len(content)
            names = f"{number}{row:03d}", f"http://{folder.name}/{number}/{row}.jpg"
            place = archive.offset + tarfile.BLOCKSIZE, len(content), xxhash.xxh3_64_intdigest(content)
            table.append(dict(zip(INDEX.names, (*names, *place), strict=True)))
            archive.addfile(member, io.BytesIO(content))
    pq.write_table(pa.Table.from_pylist(table, INDEX), folder / f"{number:05d}.parquet")
    return manifest.Shard(name=tar.stem, samples=size, bytes=tar.stat().st_size, sha256=sha256(tar), bucket=bucket)


@pytest.fixture(scope="session")
def latent_set() -> Callable[..., Path]:
    """Writes a set of shards of the given sizes and buckets (none: one shape) into a folder."""

    def write(folder: Path, sizes: Sequence[int], buckets: Sequence[str] = ()) -> Path:
        folder.mkdir(parents=True)
        shards = [
            write_shard(folder, number, size, buckets[number] if buckets else "") for number, size in enumerate(sizes)
        ]
        shapes = {"buckets": {bucket: SHAPES[bucket] for bucket in buckets}} if buckets else {"shape": SHAPES[""]}
        contract = {**shapes, "text_length": LENGTH}
        manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract))
        return folder

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., "Served"]]:
    """Start file servers in processes of their own: `serve(folder, latency=0.03, ...)`; see shard_server.py."""
    with ExitStack() as running:

        def start(folder: Path, **settings: object) -> Served:
            script, given = Path(__file__).parent / "shard_server.py", json.dumps({"folder": str(folder), **settings})
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = running.enter_context(subprocess.Popen([sys.executable, str(script), given], **pipes))
            running.callback(process.kill)
            return Served(f"http://127.0.0.1:{process.stdout.readline().strip()}", process)

        yield start


@dataclass
class Served:
    location: str
    process: subprocess.Popen[str]

    def counts(self, of: str = "requests") -> dict[str, int]:
        """Requests (or bytes, or faults) so far, by path (or kind)."""
        with urllib.request.urlopen(f"{self.location}/.counts") as answer:
            return json.load(answer)[of]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def plain_set(tmp_path: Path) -> Callable[..., list[manifest.Shard]]:
    """Shards of seeded bytes of the given sizes, in `tmp_path`/set; nothing but whole files matters to a storage."""

    def make(*sizes: int) -> list[manifest.Shard]:
        folder, shards = tmp_path / "set", []
        folder.mkdir()
        for number, size in enumerate(sizes):
            content = np.random.default_rng(number).bytes(size)
            (folder / f"{number:05d}.tar").write_bytes(content)
            (folder / f"{number:05d}.parquet").write_bytes(b"index " + content[:100])
            digest = hashlib.sha256(content).hexdigest()
            shards.append(manifest.Shard(name=f"{number:05d}", samples=1, bytes=size, sha256=digest))
        return shards

    return make


def pages(path: Path) -> np.ndarray:
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        count = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * count)()
        first = ctypes.c_char.from_buffer(mapped)
        assert not ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), found)
        del first
        return np.frombuffer(bytes(found), np.uint8) & 1 == 1


@pytest.fixture(scope="session")
def resident() -> Callable[[Path], np.ndarray]:
    """Which pages of a file are in the page cache, by mincore: bool [pages]."""
    return pages


@pytest.fixture(scope="session")
def evict() -> Callable[[Path], None]:
    """Take a file out of the page cache; skips the test where that cannot be."""

    def out(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        if pages(path).mean() > 0.1:
            pytest.skip("this file system keeps files in memory")

    return out
