"""`data_prep/build_shards.py` on a real Spark of this machine: killed while it downloads, the bytes of one process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from bigdiff.prep.download import MARK
from bigdiff.prep.layout import PUBLISHED, STATISTICS, WORK
from bigdiff.quickstart.dataset import META, Options, draw
from bigdiff.quickstart.faults import AWKWARD, FAULTY, fewer
from bigdiff.quickstart.server import serve
from bigdiff.runtime.files import sha256

ROOT = Path(__file__).resolve().parents[2]
DOOR = [sys.executable, str(ROOT / "data_prep" / "build_shards.py")]
ON_SPARK = ["download.distributor=pyspark", "download.spark_master=local[2]"]
SLOW = ("hanging", "dripping")  # seconds a run, and tested elsewhere
NEEDED = find_spec("pyspark") is not None and shutil.which("java") is not None


@pytest.fixture
def common(tmp_path: Path) -> Iterator[list[str]]:
    """Of every command: a small set with every planted fault but those, behind a server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    faulty = tuple(kind for kind in fewer(FAULTY, 1) if kind.name not in SLOW)
    options = Options(count=150, awkward=fewer(AWKWARD, 1), faulty=faulty, port=port)
    draw(tmp_path / "source", options, processes=1)
    with serve(tmp_path / "source", port):
        settings = ["download.rows_per_file=15", "pack.samples_per_shard=60", "pack.processes=1"]
        yield [*DOOR, "--config", "quickstart", "--input", str(tmp_path / "source" / META), *settings]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=480, cwd=ROOT, check=False)


def finals(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): sha256(path) for path in sorted(output.rglob("*")) if path.is_file()}


def downloading(output: Path) -> list[str]:
    """The names of the processes that download for this set."""
    mark = f"{MARK}={(output / WORK).resolve()}/".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
        except OSError:  # it has ended
            continue
    return sorted(found)


@pytest.mark.skipif(not NEEDED, reason="pyspark or java is missing")
def test_killed_on_spark_and_started_again_the_bytes_of_multiprocessing(common: list[str], tmp_path: Path) -> None:
    alone, output = tmp_path / "alone", tmp_path / "set"
    done = run(*common, "--output", str(alone), "download.processes=1")
    assert done.returncode == 0, done.stderr
    assert "150 samples in 3 shards" in done.stdout

    words = [*common, "--output", str(output), *ON_SPARK]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    first = output / WORK / "download" / "00000" / "first"
    while process.poll() is None and not any((first / PUBLISHED).glob(f"*/*{STATISTICS}")):
        time.sleep(0.01)
    assert {"java", Path(sys.executable).name[:6]} <= {name[:6] for name in downloading(output)}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while left := downloading(output):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    published = len(list((first / PUBLISHED).glob(f"*/*{STATISTICS}")))
    assert 0 < published < len(list(first.glob("_tmp-*/*.feather"))) + published  # in the midst of it

    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert finals(output) == finals(alone)
    assert downloading(output) == []


def test_refusals_come_before_anything_is_written(tmp_path: Path) -> None:
    words = [*DOOR, "--config", "quickstart", "--input", str(tmp_path), "--output", str(tmp_path / "set")]
    cases = {
        "spark_master=yarn has no effect without": ["download.spark_master=yarn"],
        "processes=3 has no effect with": ["download.distributor=pyspark", "download.processes=3"],
    }
    for sentence, more in cases.items():
        done = run(*words, *more)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    environment = {**os.environ, "JAVA_HOME": str(tmp_path)}
    spark = [*words, "download.distributor=pyspark"]
    done = subprocess.run(spark, capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert ("needs a Java runtime" if find_spec("pyspark") else "pip install 'bigdiff[spark]'") in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "set").exists()
