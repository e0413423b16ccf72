"""The quickstart's recipe, whole, on a real SLURM of four nodes on this machine: what each job takes and gives."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.load import CONFIGS

ROOT = CONFIGS.parent
RESULTS = Path(__file__).parent / "results"
Slurm = Any  # of tests/cluster/conftest.py
CLUSTER = """
name: bench
kind: slurm
nodes: 2
processes_per_node: 1
gpus_per_node: 0
cpus_per_process: 1
time_minutes: 60
environment: [GLOO_SOCKET_IFNAME=lo, HF_HUB_OFFLINE=1]
preflight: {slow: 0}
"""


def seconds(shown: str, key: str) -> float:
    return datetime.fromisoformat(re.findall(rf"\b{key}=(\S+)", shown)[0]).timestamp()


@pytest.mark.bench
@pytest.mark.timeout(5400)
def test_the_whole_quickstart_is_one_command(slurm: Slurm, tmp_path: Path, free_port: Callable[[], int]) -> None:
    (tmp_path / "bench.yaml").write_text(CLUSTER)
    text = (CONFIGS / "recipes" / "quickstart.yaml").read_text()
    own = f"bigdiff.quickstart.part, images, --port, '{free_port()}']"
    (tmp_path / "quickstart.yaml").write_text(text.replace("bigdiff.quickstart.part, images]", own))
    recipe = ["--recipe", str(tmp_path / "quickstart.yaml"), "--cluster", str(tmp_path / "bench.yaml")]
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "launch" / "slurm.py"), *recipe, "--follow"]
    shown: dict[str, str] = {}  # SLURM forgets a job minutes after its end
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=tmp_path)
        ended = False
        while not ended:
            ended = process.poll() is not None
            whole = time.monotonic() - began
            every = slurm.run("scontrol", "show", "job", "-o").splitlines()  # once more after the end
            shown |= {found.group(1): line for line in every if (found := re.match(r"JobId=(\d+) ", line))}
            time.sleep(1)
        said.seek(0)
        told = said.read()
    assert process.returncode == 0, told[-3000:]
    jobs = dict(re.findall(r"^(\S+) submitted as job (\d+)", told, re.MULTILINE))
    load = os.getloadavg()[0]
    lines = [
        "`launch/slurm.py --recipe quickstart --follow`, whole, on a real SLURM of four nodes of 2 CPUs each:",
        "two processes of one core a stage, one a task. Seconds that each job ran.",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        "",
    ]
    for name, number in jobs.items():
        taken = seconds(shown[number], "EndTime") - seconds(shown[number], "StartTime")
        lines.append(f"{name:20}{taken:8.0f}")
    lines += [f"{'from the command':20}{whole:8.0f}", ""]
    for size in (32, 64):
        scores = json.loads((tmp_path / "runs" / f"quickstart-{size}px" / "scores.json").read_text())["scores"]
        judged = ", ".join(f"{name} {row['accuracy']:.2f} ({row['chance']:.2f})" for name, row in scores.items())
        lines.append(f"{size} px, right on held-out captions (by chance): {judged}")
    report = "\n".join(lines) + "\n"
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-recipe.txt").write_text(report)
    print(report)
