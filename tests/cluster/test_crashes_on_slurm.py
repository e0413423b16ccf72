"""Stages on a real SLURM that are killed, requeued, warned and cancelled, or cannot run: what becomes of the jobs."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigdiff.cluster.crash import RECORD, crashes

Slurm = Any  # of tests/cluster/conftest.py
EVERY = 20  # steps from checkpoint to checkpoint


def test_a_run_that_is_killed_requeued_and_warned_ends_as_one_that_nothing_happened_to(
    slurm: Slurm, start: Callable[..., Any], tmp_path: Path
) -> None:
    plain, job = (start(name, exclude="n[3-4]") for name in ("plain", "struck"))  # both on the same nodes
    job.wait(step=60)
    killed = time.time()
    os.kill(job.rank_1(), signal.SIGKILL)
    job.wait(step=120)
    slurm.run("scontrol", "requeue", job.number)
    job.wait(step=190)
    slurm.run("scancel", "--signal=USR2", job.number)
    assert plain.end() == job.end()[:2] + (0,) == ("COMPLETED", "0:0", 0)
    assert job.shown()["Restarts"] == "3"
    (crash,) = crashes(job.run / "logs")
    assert crash.status == 128 + signal.SIGKILL and crash.kind == "passing" and crash.nodes == "n[1-2]"
    assert 40 <= crash.step <= 120 and crash.step % EVERY == 0
    assert killed < crash.time < time.time()
    assert f"crash 1 of at most 3 in a row without a checkpoint after step {crash.step}" in job.log()
    assert [line["step"] for line in job.metrics()] == list(range(1, 301))
    assert job.losses() == plain.losses()
    assert job.weights() == plain.weights()


def test_a_stage_that_cannot_run_fails_once_with_its_sentence(
    slurm: Slurm, start: Callable[..., Any], tmp_path: Path
) -> None:
    job = start("lacking", f"data.latents={tmp_path / 'nowhere'}")
    assert job.end() == ("FAILED", "2:0", 0)
    (crash,) = crashes(job.run / "logs")
    assert crash.kind == "input" and str(tmp_path / "nowhere") in crash.why
    assert job.log().splitlines()[-1] == (f"error: {crash.why}; this would come again, so the job is not started again")


def test_a_rank_that_dies_at_each_start_is_given_up(slurm: Slurm, start: Callable[..., Any], tmp_path: Path) -> None:
    job = start("dying", max_crashes=2)
    for restarts in range(2):
        job.until(lambda number=restarts: job.shown()["Restarts"] == str(number), "restart", 240)
        os.kill(job.rank_1(), signal.SIGKILL)
    assert job.end() == ("FAILED", "1:0", 1)
    found = crashes(job.run / "logs")
    assert [(one.step, one.kind) for one in found] == [(0, "passing")] * 2
    assert {one.status for one in found} <= {137, 143}  # of the peer, which may not be ready yet to disregard TERM
    assert "crash 2 of at most 2 in a row without a checkpoint after step 0 (max_crashes)" in job.log()


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, start: Callable[..., Any], tmp_path: Path) -> None:
    job = start("unwanted")
    job.rank_1()
    slurm.run("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    job.until(lambda: not list(job.ranks("1")), "end of its processes", 120)
    assert job.end()[0] == "CANCELLED" and job.end()[2] == 0
    assert not (job.run / "logs" / RECORD).exists()


def test_a_node_that_differs_is_left_out_and_one_that_fails_twice_where_there_are_others(
    slurm: Slurm, start: Callable[..., Any], tmp_path: Path
) -> None:
    own = tmp_path / "own" / "submitit-0.0.1.dist-info"
    own.mkdir(parents=True)
    (own / "METADATA").write_text("Name: submitit\nVersion: 0.0.1\n")
    (slurm.folder / "n2.env").write_text(f"echo export PYTHONPATH={tmp_path / 'own'}\n")
    try:
        job = start("choosing", "batch.total=12", "steps=40", nodes=3, max_crashes=9)
        job.until(lambda: job.shown()["ExcNodeList"] == "n2" and job.shown()["JobState"] == "RUNNING", "exclusion", 300)
    finally:
        (slurm.folder / "n2.env").unlink()
    for restarts in (1, 2):
        job.until(lambda number=restarts: job.shown()["Restarts"] == str(number), "restart", 240)
        os.kill(job.rank_1(), signal.SIGKILL)
    assert job.end() == ("COMPLETED", "0:0", 3)
    found = crashes(job.run / "logs")
    assert [(one.kind, one.blamed) for one in found] == [("node", ("n2",)), ("passing", ("n3",)), ("passing", ("n3",))]
    assert found[0].why.startswith("node n2: submitit is 0.0.1, others ")
    log = job.log()
    assert "blamed: n2; the job starts without it from now on" in log
    assert "blamed: n3; the job starts with it, as SLURM has no other for it" in log
    assert log.count("== start ") == 4 and log.count("preflight of 3 processes on 3 nodes in ") >= 1
