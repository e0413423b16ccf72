"""Stages on a real SLURM that are killed, requeued, warned and cancelled, or cannot run: what becomes of the jobs."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bigdiff.checkpoint import layout
from bigdiff.cluster import submit
from bigdiff.cluster.crash import RECORD, crashes
from bigdiff.config.cluster import Cluster, Preflight
from bigdiff.config.load import load_stage
from bigdiff.runtime.files import sha256

Slurm = Any  # of tests/cluster/conftest.py
STEPS, EVERY = 300, 20


def cluster(max_crashes: int = 3, nodes: int = 2) -> Cluster:
    return Cluster(
        name="test",
        nodes=nodes,
        processes_per_node=1,
        gpus_per_node=0,
        cpus_per_process=1,
        time_minutes=30,  # of jobs up to ten minutes submitit counts each preemption as a time-out
        max_crashes=max_crashes,
        environment=("GLOO_SOCKET_IFNAME=lo", "HF_HUB_OFFLINE=1"),
        preflight=Preflight(slow=0.0),  # the nodes share two cores with whatever else runs
    )


@pytest.fixture
def start(slurm: Slurm, toy: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit the toy stage under a name, with runs in `tmp_path`; the job's id."""
    jobs: list[str] = []

    def begin(name: str, *settings: str, max_crashes: int = 3, nodes: int = 2) -> str:
        common = [f"name={name}", f"runs={tmp_path}", f"steps={STEPS}", f"checkpoint.every={EVERY}", "batch.micro=4"]
        stage = load_stage(str(toy / "stage.yaml"), [*common, *settings])
        jobs.append(submit.slurm(stage, cluster(max_crashes, nodes)))
        return jobs[-1]

    yield begin
    for job in jobs:
        slurm.run("scancel", job)


class Job:
    """What can be known of a job, and done to it, from outside."""

    def __init__(self, slurm: Slurm, number: str, run: Path) -> None:
        self.slurm, self.number, self.run = slurm, number, run

    def shown(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm.run("scontrol", "show", "job", "-o", self.number)))

    def wait(self, *, step: int, seconds: float = 120) -> None:
        self._until(lambda: self.metrics() and self.metrics()[-1]["step"] >= step, f"step {step}", seconds)

    def end(self, seconds: float = 120) -> tuple[str, str, int]:
        """State, exit code and number of restarts, once the job has ended and its processes are gone."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        self._until(lambda: self.shown()["JobState"] not in going, "end", seconds)
        shown = self.shown()
        return shown["JobState"], shown["ExitCode"], int(shown["Restarts"])

    def metrics(self) -> list[dict[str, Any]]:
        file = self.run / layout.METRICS
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def rank_1(self, seconds: float = 60) -> int:
        found: list[int] = []
        self._until(lambda: found.extend(self._ranks("1")) or found, "rank 1", seconds)
        return found[0]

    def log(self) -> str:
        (log,) = (self.run / "logs").glob(f"*-{self.number}/{self.number}_0_log.out")
        return log.read_text()

    def _ranks(self, rank: str) -> Iterator[int]:
        wanted = {f"SLURM_JOB_ID={self.number}".encode(), f"SLURM_PROCID={rank}".encode()}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                named = b"submitit.core._submit" in (folder / "cmdline").read_bytes()
                if named and wanted <= {*(folder / "environ").read_bytes().split(b"\0")}:
                    yield int(folder.name)

    def _until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} in {seconds} s: {self.shown()}"
            time.sleep(0.05)


def test_a_run_that_is_killed_requeued_and_warned_ends_as_one_that_nothing_happened_to(
    slurm: Slurm, start: Callable[..., str], tmp_path: Path
) -> None:
    plain, job = (Job(slurm, start(name), tmp_path / name) for name in ("plain", "struck"))
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
    assert 0 < crash.time - killed < 20
    assert f"crash 1 of at most 3 in a row without a checkpoint after step {crash.step}" in job.log()
    assert [line["step"] for line in job.metrics()] == list(range(1, STEPS + 1))
    assert losses(job) == losses(plain)
    assert weights(job.run) == weights(plain.run)


def losses(job: Job) -> list[dict[str, float]]:
    """All that was measured of each step, but for times and rates."""
    return [{key: value for key, value in line.items() if "loss" in key or "norm" in key} for line in job.metrics()]


def weights(run: Path) -> list[str]:
    newest = layout.latest(run)
    assert newest is not None and layout.step_of(newest) == STEPS
    return [sha256(file) for file in sorted(newest.glob("rank-*.safetensors"))]


def test_a_stage_that_cannot_run_fails_once_with_its_sentence(
    slurm: Slurm, start: Callable[..., str], tmp_path: Path
) -> None:
    job = Job(slurm, start("lacking", f"data.latents={tmp_path / 'nowhere'}"), tmp_path / "lacking")
    assert job.end() == ("FAILED", "2:0", 0)
    (crash,) = crashes(job.run / "logs")
    assert crash.kind == "input" and str(tmp_path / "nowhere") in crash.why
    assert job.log().splitlines()[-1] == (f"error: {crash.why}; this would come again, so the job is not started again")


def test_a_rank_that_dies_at_each_start_is_given_up(slurm: Slurm, start: Callable[..., str], tmp_path: Path) -> None:
    job = Job(slurm, start("dying", max_crashes=2), tmp_path / "dying")
    for restarts in range(2):
        job._until(lambda number=restarts: job.shown()["Restarts"] == str(number), "restart", 60)
        os.kill(job.rank_1(), signal.SIGKILL)
    assert job.end() == ("FAILED", "1:0", 1)
    found = crashes(job.run / "logs")
    assert [(one.step, one.kind) for one in found] == [(0, "passing")] * 2
    assert {one.status for one in found} <= {137, 143}  # of the peer, which may not be ready yet to disregard TERM
    assert "crash 2 of at most 2 in a row without a checkpoint after step 0 (max_crashes)" in job.log()


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, start: Callable[..., str], tmp_path: Path) -> None:
    job = Job(slurm, start("unwanted"), tmp_path / "unwanted")
    job.rank_1()
    slurm.run("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    job._until(lambda: not list(job._ranks("1")), "end of its processes", 30)
    assert job.end()[0] == "CANCELLED" and job.end()[2] == 0
    assert not (job.run / "logs" / RECORD).exists()


def test_a_node_that_differs_is_left_out_and_one_that_fails_twice_where_there_are_others(
    slurm: Slurm, start: Callable[..., str], tmp_path: Path
) -> None:
    own = tmp_path / "own" / "submitit-0.0.1.dist-info"
    own.mkdir(parents=True)
    (own / "METADATA").write_text("Name: submitit\nVersion: 0.0.1\n")
    (slurm.folder / "n2.env").write_text(f"echo export PYTHONPATH={tmp_path / 'own'}\n")
    try:
        job = Job(slurm, start("choosing", "batch.total=12", "steps=40", nodes=3, max_crashes=9), tmp_path / "choosing")
        job._until(lambda: job.shown()["ExcNodeList"] == "n2" and job.shown()["JobState"] == "RUNNING", "exclusion", 90)
    finally:
        (slurm.folder / "n2.env").unlink()
    for restarts in (1, 2):
        job._until(lambda number=restarts: job.shown()["Restarts"] == str(number), "restart", 90)
        os.kill(job.rank_1(), signal.SIGKILL)
    assert job.end() == ("COMPLETED", "0:0", 3)
    found = crashes(job.run / "logs")
    assert [(one.kind, one.blamed) for one in found] == [("node", ("n2",)), ("passing", ("n3",)), ("passing", ("n3",))]
    assert found[0].why.startswith("node n2: submitit is 0.0.1, others ")
    log = job.log()
    assert "blamed: n2; the job starts without it from now on" in log
    assert "blamed: n3; the job starts with it, as SLURM has no other for it" in log
    assert log.count("== start ") == 4 and log.count("preflight of 3 processes on 3 nodes in ") >= 1
