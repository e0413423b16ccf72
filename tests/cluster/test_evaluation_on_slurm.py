"""An evaluation as a job of its own, on a real SLURM, by the command that a user types."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from networks import tiny_clip as tiny_clip

ROOT = Path(__file__).resolve().parents[2]
Slurm = Any  # of tests/cluster/conftest.py
CLUSTER = """
name: test
nodes: 2
processes_per_node: 1
gpus_per_node: 0
cpus_per_process: 1
environment: [HF_HUB_OFFLINE=1]
"""


def test_a_checkpoint_is_judged_beside_the_run(
    slurm: Slurm, trained: Callable[..., object], tiny_clip: str, tmp_path: Path
) -> None:
    trained(tmp_path / "runs")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "ours.yaml").write_text(CLUSTER)
    output = tmp_path / "runs" / "toy" / "judged"
    words = ["--checkpoint", "runs/toy/checkpoints/step-7", "--prompts", "prompts.txt", "--clip", tiny_clip]

    def call(*more: str) -> str:
        command = [sys.executable, str(ROOT / "launch" / "evaluate.py"), *words, "--steps", "2", *more]
        done = subprocess.run(
            [*command, "--output", "runs/toy/judged"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    asked = ["--async", "--cluster", "ours.yaml"]
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    first = call(*asked)
    number = first.split("submitted as job ")[1].partition(",")[0]
    assert first == (
        f"judged submitted as job {number}, makes runs/toy/judged/results.json; "
        "logs in runs/toy/jobs/evaluate/judged/logs"
    )
    assert call(*asked).startswith(f"judged is job {number} already, pending")
    assert not output.exists()
    slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    job = slurm.job(number, tmp_path / "runs" / "toy" / "jobs" / "evaluate" / "judged")
    assert job.end(180)[0] == "COMPLETED", job.log()
    assert (output / "results.json").is_file() and "| 3 | 2 |" in job.log()
    assert call(*asked) == "judged is finished: runs/toy/judged/results.json is there"
    assert call("--guidance", "3,5", *asked).startswith("judged submitted as job ")
