"""Pictures per second from URLs to shards: build_shards.py beside plain img2dataset, on one server, in turns.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Both are whole commands, imports included;
the server runs on the same cores. build_shards.py also selects, checks every picture, hashes, drops duplicates, writes
an index and a report.
"""

import io
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.data import manifest
from bigdiff.quickstart.dataset import INDEX, PICTURES, SOURCE
from bigdiff.quickstart.faults import SOUND
from bigdiff.quickstart.server import serve

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
COUNT, BASES, TURNS, SIDE = 4_000, 60, 3, 512
PROCESSES, THREADS = 2, 16


def photos(folder: Path) -> None:
    """Pictures of 800 x 600 with the spectrum of a photo, all different, as the quickstart's server wants them."""
    random, entries, at = np.random.default_rng(0), [], 0
    (folder / SOURCE).mkdir(parents=True)
    bases = []
    for _ in range(BASES):
        total = np.zeros((600, 800, 3), np.float32)
        for scale in (8, 16, 32, 64, 128, 256, 512):
            small = random.normal(size=(600 * scale // 600 + 2, 800 * scale // 600 + 2, 3)).astype(np.float32)
            total += cv2.resize(small, (800, 600), interpolation=cv2.INTER_CUBIC) / scale
        bases.append(((total - total.mean()) / total.std() * 50 + 128).clip(0, 255).astype(np.uint8))
    with (folder / SOURCE / PICTURES).open("wb") as pack:
        for number in range(COUNT):
            picture = bases[number % BASES].copy()
            picture[200:260, 300:360] = random.integers(0, 256, 3)
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "JPEG", quality=88)
            content = stream.getvalue()
            entries.append({"path": f"/{number}.jpg", "kind": SOUND, "offset": at, "length": len(content)})
            at += pack.write(content)
    pq.write_table(pa.Table.from_pylist(entries), folder / SOURCE / INDEX)


def timed(words: list[str], log: Path) -> float:
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "no_proxy": "127.0.0.1"}
    with log.open("wb") as stream:
        begin = time.monotonic()
        done = subprocess.run(words, stdout=stream, stderr=stream, env=environment, cwd=ROOT, timeout=600, check=False)
        seconds = time.monotonic() - begin
    assert done.returncode == 0, log.read_text()[-3000:]
    return seconds


def ours(meta: Path, output: Path, log: Path) -> float:
    settings = [
        f"download.processes={PROCESSES}",
        f"download.threads={THREADS}",
        f"download.per_host={THREADS}",
        "download.allow_private_addresses=true",
        "download.rows_per_file=500",
        f"pack.processes={PROCESSES}",
        f"pack.resolution={SIDE}",
        "pack.samples_per_shard=500",
    ]
    door = str(ROOT / "data_prep" / "build_shards.py")
    words = [sys.executable, door, "--config", "laion2b-en", "--input", str(meta), "--output", str(output), *settings]
    seconds = timed(words, log)
    assert manifest.read(output, "images").samples == COUNT
    return seconds


def theirs(meta: Path, output: Path, log: Path) -> float:
    options = {
        "url_list": meta,
        "input_format": "parquet",
        "url_col": "URL",
        "caption_col": "TEXT",
        "output_format": "webdataset",
        "output_folder": output,
        "processes_count": PROCESSES,
        "thread_count": THREADS,
        "image_size": SIDE,
        "resize_mode": "center_crop",
        "encode_quality": 95,
        "number_sample_per_shard": 500,
    }
    words = [str(Path(sys.executable).parent / "img2dataset"), *(f"--{key}={value}" for key, value in options.items())]
    seconds = timed(words, log)
    assert (
        sum(pq.read_table(file).column("status").to_pylist().count("success") for file in output.glob("*.parquet"))
        == COUNT
    )
    return seconds


@pytest.mark.bench
def test_images_per_second_beside_plain_img2dataset(tmp_path: Path) -> None:
    photos(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meta = tmp_path / "meta.parquet"
    urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(COUNT)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"a photo, number {number}" for number in range(COUNT)]}), meta)
    seconds: dict[str, list[float]] = {"bigdiff": [], "img2dataset": []}
    with serve(tmp_path, port):
        for turn in range(TURNS):
            for name, run in (("bigdiff", ours), ("img2dataset", theirs))[:: 1 if turn % 2 else -1]:
                seconds[name].append(run(meta, tmp_path / name, tmp_path / f"{name}-{turn}.log"))
                shutil.rmtree(tmp_path / name)
    rates = {name: COUNT / statistics.median(found) for name, found in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds["bigdiff"], seconds["img2dataset"], strict=True))
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"pictures per second from URLs to shards, whole commands, medians of {TURNS} turns, {day}",
        f"{COUNT} JPEGs of 800 x 600 on loopback to {SIDE} px, quality 95; {PROCESSES} processes x {THREADS} threads",
        f"on {os.cpu_count()} cores, the server beside; Python {platform.python_version()}, {platform.machine()}",
        "",
        *(
            f"{name:14} {rates[name]:6.1f}   seconds {', '.join(f'{one:.1f}' for one in seconds[name])}"
            for name in seconds
        ),
        "",
        f"bigdiff / img2dataset {version('img2dataset')}, median of the turns' ratios: {ratio:.2f} (goal 0.9)",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{day}-download.txt").write_text("\n".join(lines) + "\n")
