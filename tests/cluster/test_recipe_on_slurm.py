"""The quickstart's recipe on a real SLURM, smaller: pictures, latents, both stages and their judges, each a job."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.load import CONFIGS

ROOT = CONFIGS.parent
Slurm = Any  # of tests/cluster/conftest.py
CLUSTER = """
name: test
kind: slurm
nodes: 2
processes_per_node: 1
gpus_per_node: 0
cpus_per_process: 1
time_minutes: 30
environment: [GLOO_SOCKET_IFNAME=lo, HF_HUB_OFFLINE=1]
preflight: {slow: 0}
"""
SETTINGS = ["steps=30", "checkpoint.every=15", "checkpoint.keep_every=15", "log.every=5", "optim.warmup_steps=10"]
JUDGED = """
  - name: judge-32px-at
    run: [-m, bigdiff.quickstart.part, judge, --run, "{runs}/quickstart-32px", --size, "32", --step, "{step}"]
    makes: "{runs}/quickstart-32px/scores-{step}.json"
    after: [quickstart-32px]
    every: 15
"""


@pytest.fixture
def words(tmp_path: Path, free_port: Callable[[], int]) -> list[str]:
    """Of a recipe with fewer pictures and steps, of which the first stage is judged while it trains, too."""
    (tmp_path / "test.yaml").write_text(CLUSTER)
    text = (CONFIGS / "recipes" / "quickstart.yaml").read_text()
    fewer = f"bigdiff.quickstart.part, images, --scenes, '300', --port, '{free_port()}']"
    assert "bigdiff.quickstart.part, images]" in text
    (tmp_path / "quickstart.yaml").write_text(text.replace("bigdiff.quickstart.part, images]", fewer) + JUDGED)
    return ["--recipe", str(tmp_path / "quickstart.yaml"), *SETTINGS]


def door(folder: Path, name: str, *words: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / name), *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=folder,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


def test_data_both_stages_and_their_judges_are_one_graph_of_jobs(
    slurm: Slurm, tmp_path: Path, words: list[str]
) -> None:
    cluster = ["--cluster", str(tmp_path / "test.yaml")]
    first = door(tmp_path, "slurm.py", *words, *cluster, "--follow")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    told = re.findall(r"^(\S+) submitted as job (\d+)", first.stdout, re.MULTILINE)
    jobs = {name: job for name, job in told if "-at-" not in name}  # the stage's own log, shown too, has the others
    waits = {
        name: after.split(" and ")
        for name, after in re.findall(r"^(\S+) submitted .* after job ([\d and]+);", first.stdout, re.MULTILINE)
    }
    assert list(jobs) == [
        "images",
        "latents-32px",
        "latents-64px",
        "quickstart-32px",
        "judge-32px",
        "quickstart-64px",
        "judge-64px",
    ]
    assert waits == {
        "latents-32px": [jobs["images"]],
        "latents-64px": [jobs["images"]],
        "quickstart-32px": [jobs["latents-32px"]],
        "judge-32px": [jobs["quickstart-32px"]],
        "quickstart-64px": [jobs["quickstart-32px"], jobs["latents-64px"]],
        "judge-64px": [jobs["quickstart-64px"]],
    }
    for size in (32, 64):
        run = tmp_path / "runs" / f"quickstart-{size}px"
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 30
        scores = json.loads((run / "scores.json").read_text())["scores"]
        assert scores["shape"]["oracle"] > 0.9 and (run / "pipeline" / "model_index.json").is_file()
    idle = time.monotonic() + 300
    while slurm.run("squeue", "-h"):  # the follower does not wait for what is beside
        assert time.monotonic() < idle
        time.sleep(0.2)
    run = tmp_path / "runs" / "quickstart-32px"
    for step in (15, 30):
        assert json.loads((run / f"scores-{step}.json").read_text())["scores"]["shape"]["oracle"] > 0.9
        assert (run / f"pipeline-{step}" / "model_index.json").is_file()
    again = door(tmp_path, "slurm.py", *words, *cluster)
    assert again.returncode == 0 and again.stdout.count(" is finished: ") == 9 and "submitted" not in again.stdout
    shown = door(tmp_path, "status.py", *words)
    every = [*jobs, "judge-32px-at-15", "judge-32px-at-30"]
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [[name, "finished"] for name in every]
