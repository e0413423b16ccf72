"""`data_prep/build_shards.py` and `repack_shards.py` on a real SLURM: the bytes of a run on this machine alone."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigdiff.quickstart.dataset import META, Options, draw
from bigdiff.quickstart.faults import AWKWARD, FAULTY, fewer
from bigdiff.quickstart.server import serve
from bigdiff.runtime.files import sha256

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """
name: test
kind: slurm
nodes: 2
processes_per_node: 1
gpus_per_node: 0
cpus_per_process: 2
time_minutes: 5
"""
SETTINGS = [
    "download.rows_per_part=50",
    "download.rows_per_file=20",
    "download.processes=1",
    "pack.samples_per_shard=30",
    "pack.processes=1",
]


def run(door: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / door), *words], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def finals(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): sha256(path) for path in sorted(output.rglob("*")) if path.is_file()}


def test_an_array_gives_the_bytes_of_one_machine(slurm: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    faulty = tuple(kind for kind in fewer(FAULTY, 1) if kind.name not in ("hanging", "dripping"))
    options = Options(count=80, awkward=fewer(AWKWARD, 1), faulty=faulty, port=port)
    draw(tmp_path / "source", options, processes=1)
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    on_slurm = ["--executor", "slurm", "--cluster", str(cluster)]
    common = ["--config", "quickstart", "--input", str(tmp_path / "source" / META), *SETTINGS]
    with serve(tmp_path / "source", port):
        here = run("build_shards.py", *common, "--output", str(tmp_path / "here"))
        there = run("build_shards.py", *common, "--output", str(tmp_path / "there"), *on_slurm)
    assert "80 samples in 3 shards" in here
    assert here.replace("here", "there") == there
    assert finals(tmp_path / "here") == finals(tmp_path / "there")
    for output, more in (("new-here", []), ("new-there", on_slurm)):
        words = ["--images", str(tmp_path / "here"), "--output", str(tmp_path / output), "pack.samples_per_shard=50"]
        assert "80 samples in 2 shards" in run("repack_shards.py", *words, *more)
    assert finals(tmp_path / "new-here") == finals(tmp_path / "new-there")
