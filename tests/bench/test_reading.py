"""Samples per second of CPU time: this project's latent reader beside other libraries and what copying costs at least.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Every way of reading is a process of its own
(tests/bench/reading/), they take turns for several rounds, and the medians are told, so ratios mean more than rates.
LitData and MosaicML Streaming live in environments of their own, which `make bench` makes: their pins do not fit ours.
"""

import io
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from bigdiff.data import manifest
from bigdiff.data.member import pack
from bigdiff.data.stream import Ahead
from bigdiff.runtime.files import sha256

HERE = Path(__file__).parent
RESULTS, WAYS = HERE / "results", HERE / "reading"
ENVIRONMENTS = HERE.parents[1] / ".venv" / "bench"
SHARDS, ROWS, LENGTH, WIDTH = 8, 1000, 77, 768
Make = Callable[[int, bool, int], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Moments as SD 1.x has them at a resolution, with 77 token ids and, if asked for, their text states."""

    def write(resolution: int, states: bool, count: int = SHARDS) -> Path:
        folder = tmp_path_factory.mktemp(f"{resolution}-{states}")
        random, shards, side = np.random.default_rng(0), [], resolution // 8
        for number in range(count):
            tar, rows = folder / f"{number:05d}.tar", []
            with tarfile.open(tar, "w") as archive:
                for row in range(ROWS):
                    moments = random.standard_normal((8, side, side), np.float32).astype(np.float16)
                    text = random.standard_normal((LENGTH, WIDTH), np.float32).astype(np.float16) if states else None
                    content = pack(moments, np.zeros(LENGTH, np.uint16), text)
                    member = tarfile.TarInfo(f"{number:05d}{row:05d}.safetensors")
                    member.size = len(content)
                    where = archive.offset + tarfile.BLOCKSIZE, len(content), xxhash.xxh3_64_intdigest(content)
                    names = ("safetensors_offset", "safetensors_length", "safetensors_xxh3")
                    rows.append(dict(zip(names, where, strict=True)))
                    archive.addfile(member, io.BytesIO(content))
            fields = [("safetensors_offset", pa.int64()), ("safetensors_length", pa.int64())]
            schema = pa.schema([*fields, ("safetensors_xxh3", pa.uint64())])
            pq.write_table(pa.Table.from_pylist(rows, schema), tar.with_suffix(".parquet"))
            shards.append(manifest.Shard(name=tar.stem, samples=ROWS, bytes=tar.stat().st_size, sha256=sha256(tar)))
        contract = {"shape": [8, side, side], "text_length": LENGTH, "text_states": WIDTH if states else 0}
        manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract))
        return folder

    return write


def run(python: Path, script: str, *arguments: str, batch: int = 64) -> dict[str, float]:
    """What a way of reading prints at its end."""
    done = subprocess.run(
        [str(python), str(WAYS / script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "BATCH": str(batch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    found: dict[str, float] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return found


def cool(folder: Path) -> None:
    """Take the set out of the page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def sequential(folder: Path) -> tuple[int, float]:
    """Bytes and seconds of reading the tars one after another in large pieces."""
    began, total = time.perf_counter(), 0
    for tar in sorted(folder.glob("*.tar")):
        descriptor = os.open(tar, os.O_RDONLY)
        while got := len(os.read(descriptor, 8 << 20)):
            total += got
        os.close(descriptor)
    return total, time.perf_counter() - began


def direct(folder: Path) -> tuple[int, float]:
    """As `sequential`, past the page cache and four pieces at once: what the disk gives without the kernel's copy."""
    piece, began = 4 << 20, time.perf_counter()
    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        jobs = []
        for tar in sorted(folder.glob("*.tar")):
            descriptor = os.open(tar, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, descriptor)
            jobs += [(descriptor, offset) for offset in range(0, tar.stat().st_size, piece)]

        def read(numbers: range) -> int:
            with mmap.mmap(-1, piece) as memory:  # aligned to a page
                return sum(os.preadv(jobs[number][0], [memory], jobs[number][1]) for number in numbers)

        total = sum(pool.map(read, [range(first, len(jobs), 4) for first in range(4)]))
    return total, time.perf_counter() - began


def quiet() -> None:
    """Wait until others leave half of the processors, a minute at most."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        before = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        time.sleep(0.5)
        after = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        spent = [late - early for early, late in zip(before, after, strict=True)]
        if spent[3] + spent[4] > sum(spent) / 2 * 0.9:  # idle and waiting for disks
            return


def others(folder: Path) -> dict[str, tuple[Path, str, list[str]]]:
    """The other libraries that are installed, their own copies of the set made."""
    found = {}
    for name, script in (("litdata", "with_litdata.py"), ("streaming", "with_streaming.py")):
        python, copy = ENVIRONMENTS / name / "bin" / "python", folder.with_name(f"{folder.name}-{name}")
        if python.is_file():
            run(python, script, "prepare", str(folder), str(copy))
            orders = ("shuffled", "in-order") if name == "litdata" else ("shuffled",)
            found |= {f"{name} {order}": (python, script, ["read", str(copy), order]) for order in orders}
    return found


def medians(ways: dict[str, tuple[Path, str, list[str]]], rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Medians of what each way printed, the ways taking turns."""
    told: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (python, script, arguments) in ways.items():
            told[name].append(run(python, script, *arguments, batch=batch))
    return {name: {key: statistics.median(one[key] for one in many) for key in many[0]} for name, many in told.items()}


def report(name: str, lines: list[str]) -> None:
    """Keep the figures under today's date."""
    today = datetime.now(UTC).date().isoformat()
    about = f"{today}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-{name}.txt").write_text("\n".join([about, *lines]) + "\n")


@pytest.mark.bench
@pytest.mark.parametrize(
    ("resolution", "states", "batch", "rounds"),
    [(512, False, 64, 5), (512, False, 256, 5), (256, False, 64, 3), (512, True, 64, 3), (256, True, 64, 3)],
)
def test_warm_samples_per_second(make: Make, resolution: int, states: bool, batch: int, rounds: int) -> None:
    folder = make(resolution, states)
    cool(folder)
    sequential(folder)  # into the page cache as a storage fills it: in large pieces
    mine = Path(sys.executable)
    ways = {
        "bigdiff, 1 thread": (mine, "ours.py", [str(folder), "1"]),
        "bigdiff, 2 threads": (mine, "ours.py", [str(folder), "2"]),
        "bigdiff, kept in memory": (mine, "ours.py", [str(folder), "1", "8"]),  # the largest set has 1.5 GB
        "webdataset": (mine, "stock.py", [str(folder)]),
        "copy of fresh mapping": (mine, "limits.py", [str(folder), "mapped"]),
        "copy in memory": (mine, "limits.py", [str(folder), "memory"]),
        **(others(folder) if (resolution, states, batch) == (512, False, 64) else {}),
    }
    found = medians(ways, rounds, batch)
    rates = {name: one["samples"] / one["cpu"] for name, one in found.items()}
    ours = rates["bigdiff, 1 thread"]
    lines = [f"{resolution} px moments, {'ids and text states' if states else 'ids'}: samples per second of CPU time"]
    lines += [f"shuffled, batches of {batch}, every sample checked (xxh3), page cache warm; medians of {rounds} rounds"]
    lines += [f"{name:24}{rate:10,.0f}   bigdiff is {ours / rate:6.2f} times" for name, rate in rates.items()]
    lines += ["kept in memory: 1 thread, second epoch; every sample was checked once, when it was read in the first"]
    kept = rates["bigdiff, kept in memory"]
    shares = {"webdataset": "times webdataset", "copy in memory": "of a copy in memory"}
    shares["copy of fresh mapping"] = "of a copy of fresh mapping"
    lines += ["it is " + ", ".join(f"{kept / rates[name]:.2f} {words}" for name, words in shares.items())]
    for name in ("bigdiff, 1 thread", "bigdiff, kept in memory"):
        one = found[name]
        lines += [f"main thread per step of {batch}: {1e3 * one['main'] / one['steps']:.3f} ms ({name})"]
    report(f"reading-{resolution}px{'-states' if states else ''}{'' if batch == 64 else f'-batch-{batch}'}", lines)


@pytest.mark.bench
def test_cold_bytes_per_second(make: Make) -> None:
    folder, rounds, size = make(512, False, 3 * SHARDS), 5, Ahead().disk_bytes
    ways = {
        f"{threads} threads, {'asked for' if ahead else 'not asked for'}": [str(folder), str(threads), str(ahead)]
        for threads in (2, 4)
        for ahead in (size, 0)
    }
    told: dict[str, list[dict[str, float]]] = {name: [] for name in ("sequential", "page cache left out", *ways)}
    for _ in range(rounds):
        for name, read in (("sequential", sequential), ("page cache left out", direct)):
            quiet()
            cool(folder)
            cpu, (total, seconds) = time.process_time(), read(folder)
            told[name].append({"wall": seconds, "first": 0.0, "cpu": time.process_time() - cpu})
        for name, arguments in ways.items():
            quiet()
            cool(folder)
            told[name].append(run(Path(sys.executable), "cold.py", *arguments))
    middle = {
        name: {key: statistics.median(one[key] for one in many) for key in many[0]} for name, many in told.items()
    }
    lines = [f"{total / 1e9:.1f} GB of 512 px moments in windows of 8 shards of 66 MB, page cache cold, once through:"]
    lines += [f"MB per second of wall clock with the start, medians of {rounds} rounds in turns; {size:,} bytes ahead"]
    lines += [
        "sequential: a thread, one tar after another, in pieces of 8 MiB; page cache left out: 4 threads, O_DIRECT"
    ]
    one_by_one = middle["sequential"]["wall"]
    lines += [
        f"{name:26}{total / one['wall'] / 1e6:7,.0f}   {one_by_one / one['wall']:5.2f} of sequential, "
        f"{total / max(mine['wall'] for mine in told[name]) / 1e6:,.0f} to "
        f"{total / min(mine['wall'] for mine in told[name]) / 1e6:,.0f}; first batch after "
        f"{1e3 * one['first']:,.0f} ms, {one['cpu']:.1f} s of CPU time"
        for name, one in middle.items()
    ]
    report("reading-cold", lines)
