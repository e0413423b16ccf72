"""Samples per second of CPU time: this project's latent reader beside stock webdataset and a plain memory copy.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Medians of five rounds in one process, page
cache warm, so ratios mean more than rates.
"""

import io
import platform
import statistics
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import webdataset as wds

from bigdiff.data import index, manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.latents import LatentSet
from bigdiff.data.member import pack
from bigdiff.data.order import Order
from bigdiff.runtime.files import sha256

RESULTS = Path(__file__).parent / "results"
ROUNDS, SHARDS, ROWS, BATCH = 5, 4, 1000, 64
CONTRACT = LatentContract(
    vae_sha256="none",
    vae_scaling_factor=0.18215,
    vae_factor=8,
    latent_channels=4,
    resolution=512,
    tokenizer_sha256="none",
    empty_tokens=(49406,) + (49407,) * 76,
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 px moments as SD 1.x has them: 64 KiB and 77 token ids a sample."""
    folder = tmp_path_factory.mktemp("latents")
    random, shards = np.random.default_rng(0), []
    tokens = np.asarray(CONTRACT.empty_tokens, np.uint16)
    for number in range(SHARDS):
        tar = folder / f"{number:05d}.tar"
        with tarfile.open(tar, "w") as archive:
            for row in range(ROWS):
                content = pack(random.normal(size=CONTRACT.shape).astype(np.float16), tokens)
                member = tarfile.TarInfo(f"{number:05d}{row:05d}.safetensors")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found = index.members(tar)
        pq.write_table(
            pa.table({"key": list(found), **index.columns(list(found), found)}), folder / f"{number:05d}.parquet"
        )
        shards.append(manifest.Shard(name=tar.stem, samples=ROWS, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=CONTRACT.lines()))
    return folder


def ours(latents: Path) -> tuple[int, float]:
    """Every sample once in shuffled order, in batches of tensors; samples and seconds of CPU time."""
    seen, began = 0, time.process_time()
    with LatentSet(latents) as opened:
        order = Order(sizes=opened.manifest.sizes, seed=0, window=SHARDS)
        for start in range(0, order.samples - BATCH + 1, BATCH):
            moments, _ = opened.read(*order.locate(start, BATCH))
            seen += len(moments)
    return seen, time.process_time() - began


def stock(latents: Path) -> tuple[int, float]:
    """The same tars by webdataset, decoded by safetensors, in the tars' order, in batches of arrays."""
    tars = sorted(str(path) for path in latents.glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=False).map(lambda one: safetensors.numpy.load(one["safetensors"]))
    batch, seen, began = [], 0, time.process_time()
    for sample in samples:
        batch.append(sample["moments"])
        if len(batch) == BATCH:
            seen += len(np.stack(batch))
            batch = []
    return seen, time.process_time() - began


def copy(latents: Path) -> tuple[int, float]:
    """A copy of as many bytes in memory, 64 KiB at a time in random order: the limit."""
    size = int(np.prod(CONTRACT.shape)) * 2
    source = np.frombuffer(b"".join(path.read_bytes() for path in sorted(latents.glob("*.tar"))), np.uint8)
    source = source[: SHARDS * ROWS * size].reshape(-1, size)  # real pages: untouched zeros would all be one page
    began = time.process_time()
    rows = np.random.default_rng(0).permutation(len(source))
    for start in range(0, len(rows) - BATCH + 1, BATCH):
        batch = np.empty((BATCH, size), np.uint8)
        for place, row in enumerate(rows[start : start + BATCH].tolist()):
            batch[place] = source[row]
    return len(rows) // BATCH * BATCH, time.process_time() - began


@pytest.mark.bench
def test_samples_per_second(latents: Path) -> None:
    ways: dict[str, Callable[[Path], tuple[int, float]]] = {"bigdiff": ours, "webdataset": stock, "memory copy": copy}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):  # side by side, so that a busy moment hits all alike
        for name, way in ways.items():
            seen, seconds = way(latents)
            rates[name].append(seen / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    today = datetime.now(UTC).date().isoformat()
    lines = [f"512 px moments, samples per second of CPU time, medians of {ROUNDS} rounds, {today}"]
    lines.append(f"Python {platform.python_version()}, {platform.machine()}, page cache warm; opening the set included")
    lines += [f"{name:12} {median:10,.0f}" for name, median in medians.items()]
    lines.append(f"bigdiff / webdataset  {medians['bigdiff'] / medians['webdataset']:.1f}")
    lines.append(f"bigdiff / memory copy {medians['bigdiff'] / medians['memory copy']:.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-reading.txt").write_text("\n".join(lines) + "\n")
