import fcntl
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster import status
from bigdiff.cluster.chain import Chain, check, submitted
from bigdiff.cluster.crash import Crash
from bigdiff.cluster.starts import Start
from bigdiff.cluster.status import Found, Queued
from bigdiff.config.cluster import Cluster
from bigdiff.config.graph import chain
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.runtime.files import write_json

CRASH = Crash(time=1.0, job="20261121-120000-77", nodes="n1", status=137, step=40, kind="passing", why="killed")
FOUND = Found(
    job="77",
    on_slurm=True,
    held=False,
    checkpoint=40,
    reading={"step": 50, "speed/images_per_second": 200.0},
    crashes=(CRASH,),
)
RUNNING = Queued(state="RUNNING", reason="None", nodes="n[1-2]", restarts=2)


def of(*stages: Stage) -> Chain:
    return Chain(recipe="", nodes=chain(stages), runs=stages[0].runs)


@pytest.mark.parametrize(
    ("found", "queued", "state"),
    [
        (FOUND, RUNNING, "running"),
        (FOUND, replace(RUNNING, state="PENDING", reason="Priority"), "pending (Priority)"),
        (FOUND, replace(RUNNING, state="COMPLETING"), "completing"),
        (FOUND, None, "failed"),
        (replace(FOUND, held=True), None, "running"),
        (replace(FOUND, checkpoint=41), None, "stopped"),  # it went on after the crash
        (replace(FOUND, crashes=()), None, "stopped"),
        (replace(FOUND, checkpoint=100), RUNNING, "finished"),  # the job is about to end
        (replace(FOUND, checkpoint=0, reading={}, crashes=()), None, "not started"),
    ],
)
def test_the_state_is_slurms_while_it_knows_the_job(found: Found, queued: Queued | None, state: str) -> None:
    stage = load_stage("quickstart-32px", ["steps=100", "optim.warmup_steps=10"])
    assert status.stand(stage, found, queued).state == state


def test_what_is_left_follows_from_the_rate_while_it_runs() -> None:
    stage = load_stage("quickstart-32px", ["steps=100", "optim.warmup_steps=10"])
    row = status.stand(stage, FOUND, RUNNING)
    assert (row.step, row.steps, row.checkpoint, row.restarts, row.why) == (50, 100, 40, 2, "killed")
    assert row.seconds_left == pytest.approx(50 * stage.batch.total / 200)
    twice = tuple(Start(time=1.0, job=CRASH.job, nodes="n1", step=0, ended=how) for how in ("told to stop", "", ""))
    assert status.stand(stage, replace(FOUND, starts=twice), None).restarts == 2
    assert status.stand(stage, replace(FOUND, starts=twice[:2]), RUNNING).again == "told to stop"
    assert (row.again, status.stand(stage, replace(FOUND, starts=twice[:1]), RUNNING).again) == ("", "")
    assert status.stand(stage, FOUND, None).seconds_left is None
    assert status.stand(stage, FOUND, None).restarts == 1, "SLURM has forgotten the job, its record has not"
    fresh = status.stand(stage, replace(FOUND, reading={}), RUNNING)
    assert (fresh.step, fresh.images_per_second, fresh.seconds_left) == (40, None, None)


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    assert status.find(tmp_path) == Found(job="", on_slurm=False, held=False, checkpoint=0, reading={})
    for name in ("20261121-120000-99", "20261121-130000-12", "20261121-130000-%j"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    lines = [json.dumps({"step": step, "speed/images_per_second": 5.0}) for step in range(10_000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 10000, "spe')
    for step in (800, 1600):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000800" / "index.json").write_text("{}")
    write_json(tmp_path / "logs" / "crashes.json", [])
    lock = (tmp_path / "running.lock").open("w")
    found = status.find(tmp_path)
    assert (found.job, found.on_slurm, found.held, found.checkpoint) == ("12", False, False, 800)
    assert found.reading == {"step": 9999, "speed/images_per_second": 5.0}
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "logs" / "20261121-130000-12" / "12_submission.sh").touch()
    held = status.find(tmp_path)
    assert held.held and held.on_slurm


def test_slurm_is_asked_for_jobs_it_has_and_had(slurm: Any, tmp_path: Path) -> None:
    wait = ["sbatch", "--parsable", "--hold", f"--output={tmp_path}/log", "--wrap", "sleep 60"]
    job = slurm.run(*wait).strip()
    assert status.queue([job, "1"]) == {job: Queued(state="PENDING", reason="JobHeldUser", nodes="", restarts=0)}
    assert status.queue([]) == {}
    slurm.run("scancel", job)


def test_the_same_command_again_leaves_a_job_that_waits_alone(slurm: Any, toy: Path, tmp_path: Path) -> None:
    one = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=one"])
    two = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=two"])
    cluster = Cluster(name="test", nodes=2, processes_per_node=1, gpus_per_node=0, cpus_per_process=1)
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        (first,) = submitted(of(one), cluster, check(of(one), cluster))
        job = re.findall(r"submitted as job (\d+), at step 0 of 20", first)[0]
        assert status.waiting(tmp_path / "one") == (job, "pending")
        both = of(one, replace(two, init_from="one"))
        again, next_one = submitted(both, cluster, check(both, cluster))
        assert again == f"one is job {job} already, pending, at step 0 of 20: `scancel {job}` first to submit it anew"
        assert f"at step 0 of 20, after job {job};" in next_one
        assert len(slurm.run("squeue", "-h").splitlines()) == 2
        slurm.run("scancel", job)
        (anew,) = submitted(of(one), cluster, check(of(one), cluster))
        assert "submitted as job" in anew and f"job {job} " not in anew
    finally:
        slurm.run("scancel", "--state=PENDING")
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
