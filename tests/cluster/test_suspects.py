"""The words of a real SLURM, and what it does with a job that is to be kept off a node."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster.clients import shown
from bigdiff.cluster.suspects import START, end_of, exclude, excluded, first_killed, nodes_of, spared

Slurm = Any  # of tests/cluster/conftest.py


def submitted(script: Path, body: str, *options: str) -> str:
    script.write_text(f"#!/bin/bash\n{body}\n")
    words = ["sbatch", "--parsable", f"--output={script}.log", *options, str(script)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def ended(slurm: Slurm, job: str) -> None:
    end = time.monotonic() + 180
    while slurm.run("squeue", "-h", "-j", job, "-t", "PD,R,CG"):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(("signal", "named"), [("KILL", "n2"), ("SEGV", "n2"), ("BUS", "n2"), ("TERM", "")])
def test_the_first_process_that_a_signal_ended_is_found_in_sruns_words(
    slurm: Slurm, tmp_path: Path, signal: str, named: str
) -> None:
    (tmp_path / "task").write_text(f"""[ "$SLURM_PROCID" = 0 ] || {{ sleep 0.2; kill -{signal} $$; }}
trap "" TERM  # as the ranks of a run do
sleep 30
""")
    body = f"""echo "srun: error: n1: task 0: Killed"
echo "{START}0 of job $SLURM_JOB_ID"
srun --kill-on-bad-exit=1 bash {tmp_path}/task"""
    job = submitted(tmp_path / "script", body, "--nodes=2", "--ntasks-per-node=1", "--nodelist=n[1-2]")
    ended(slurm, job)
    log = end_of(tmp_path / "script.log")
    assert "srun: error: n2: task 1: " in log
    assert first_killed(log) == named


def test_an_exit_is_no_signal(slurm: Slurm, tmp_path: Path) -> None:
    job = submitted(tmp_path / "script", "srun bash -c 'exit 3'", "--nodes=2", "--ntasks-per-node=1")
    ended(slurm, job)
    log = end_of(tmp_path / "script.log")
    assert "Exited with exit code 3" in log and first_killed(log) == ""


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert end_of(tmp_path / "none") == "" == first_killed("")


def test_the_nodes_of_processes() -> None:
    nodes = ("n1", "n2", "n4")
    assert nodes_of([0, 1], nodes, 2) == ("n1",)
    assert nodes_of([5, 2], nodes, 2) == ("n2", "n4")
    assert nodes_of([6], nodes, 2) == ()


def test_a_job_is_kept_off_a_node_while_it_waits_and_only_where_others_are_left(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "script"
    job = submitted(script, "#SBATCH --nodes=3\nsleep 1", "--hold", "--exclude=n4")
    assert excluded(job) == ("n4",)
    assert spared(script, ["n4"]) and not spared(script, ["n1", "n4"])
    exclude(job, ["n4"])
    script.write_text(script.read_text().replace("nodes=3", "nodes=2"))
    assert spared(script, ["n1", "n4"])
    slurm.run("scontrol", "update", f"JobId={job}", "NumNodes=2")
    exclude(job, ["n1", "n4"])
    assert excluded(job) == ("n1", "n4")
    slurm.run("scontrol", "release", job)
    end = time.monotonic() + 120
    while shown(job, "JobState") == "PENDING":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert shown(job, "NodeList") == "n[2-3]"
    ended(slurm, job)


def test_a_job_without_such_nodes_has_none(slurm: Slurm, tmp_path: Path) -> None:
    job = submitted(tmp_path / "script", "true", "--hold")
    assert excluded(job) == ()
    slurm.run("scancel", job)
