"""Bytes per second of a remote set through the bounded cache, beside one plain client on the same link.

The link is a file server in its own process; all connections share its token bucket. The plain client reads the same
files one after another over one kept connection and throws them away; the storage has 30 ms before every answer,
failing requests, checksums, a cache on disk of an eighth of the set, and its reader opens the shards in order. Medians
of rounds side by side; the figures go to tests/bench/results/ with the date.
"""

import hashlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bigdiff.config.errors import RunError
from bigdiff.data.cache import Cache
from bigdiff.data.manifest import Shard
from bigdiff.data.storage import Absent, Corrupt, open_storage

RESULTS = Path(__file__).parent / "results"
SERVER = Path(__file__).parents[1] / "data/shard_server.py"
ROUNDS, SHARDS, SIZE = 3, 128, 4_000_000
AHEAD = SHARDS // 8  # shards that fit
LATENCY = 0.03
KINDS = ["500", "503", "reset", "short", "wrong"]
CASES = {  # name: (bytes a second of the link, share of failing requests)
    "100 MB/s, 1 % faults": (100e6, 0.01),
    "100 MB/s, 10 % faults": (100e6, 0.1),
    "unbounded, 1 % faults": (0.0, 0.01),
}


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[str]:
    command = [sys.executable, str(SERVER), json.dumps({"folder": str(folder), **settings})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Shard]]:
    folder, made = tmp_path_factory.mktemp("set"), []
    for number in range(SHARDS):
        content = np.random.default_rng(number).bytes(SIZE)
        (folder / f"{number:05d}.tar").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        made.append(Shard(name=f"{number:05d}", samples=1, bytes=SIZE, sha256=digest))
    return folder, made


def plain(place: str, shards: list[Shard]) -> float:
    began = time.perf_counter()
    with closing(http.client.HTTPConnection(place)) as connection:
        for shard in shards:
            connection.request("GET", f"/{shard.name}.tar")
            answer = connection.getresponse()
            left = shard.bytes
            while content := answer.read1(1 << 20):
                left -= len(content)
            assert not left
            answer.read()
    return SHARDS * SIZE / (time.perf_counter() - began)


def ours(place: str, shards: list[Shard], folder: Path) -> tuple[float, float, int]:
    """Bytes a second, seconds of this process's CPU time per GB, and shards that did not come whole."""
    lost = 0
    cache = Cache(folder=str(folder), bytes=AHEAD * SIZE)
    began, cpu = time.perf_counter(), time.process_time()
    with closing(open_storage(f"http://{place}", cache, say=lambda _: None)) as storage:
        for number, shard in enumerate(shards):
            if number % 4 == 0:
                storage.want(shards[number : number + AHEAD])
            try:
                descriptor = storage.open(shard)  # its sha256 was found right
            except (Absent, Corrupt, RunError):
                lost += 1
            else:
                lost += os.fstat(descriptor).st_size != shard.bytes
                os.close(descriptor)
    taken = time.perf_counter() - began
    assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= AHEAD * SIZE
    return SHARDS * SIZE / taken, (time.process_time() - cpu) / (SHARDS * SIZE / 1e9), lost


@pytest.mark.bench
def test_share_of_the_link(shards: tuple[Path, list[Shard]], tmp_path: Path) -> None:
    source, made = shards
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"A remote set of {SHARDS} shards of {SIZE / 1e6:g} MB over loopback HTTP, medians of {ROUNDS} rounds, {today}",
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores for server and client; "
        f"{LATENCY * 1000:g} ms before every answer, cache of {AHEAD} shards; plain: one client, no latency, no faults",
        f"{'link':24} {'plain MB/s':>12} {'bigdiff MB/s':>12} {'share':>6} {'CPU s/GB':>9} {'faults':>7} {'lost':>5}",
    ]
    for case, (link, faults) in CASES.items():
        rates: list[tuple[float, float, float]] = []
        made_faults = lost_shards = 0
        for number in range(ROUNDS):
            with serving(source, link=link) as place:
                limit = plain(place, made)
            with serving(source, link=link, latency=LATENCY, faults=faults, kinds=KINDS, seed=number) as place:
                rate, cost, lost = ours(place, made, tmp_path / f"{case}-{number}".replace("/", ""))
                with urllib.request.urlopen(f"http://{place}/.counts") as answer:
                    made_faults += sum(json.load(answer)["faults"].values())
            lost_shards += lost
            rates.append((limit, rate, cost))
        limit, rate, cost = (statistics.median(one) for one in zip(*rates, strict=True))
        lines.append(
            f"{case:24} {limit / 1e6:12.0f} {rate / 1e6:12.0f} {rate / limit:6.2f} {cost:9.2f} "
            f"{made_faults:7} {lost_shards:5}"
        )
        assert made_faults and not lost_shards, lines
        if link:
            assert rate >= 0.8 * limit, lines
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-remote.txt").write_text("\n".join(lines) + "\n")
