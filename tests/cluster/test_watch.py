import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster.chain import Chain, check, submitted
from bigdiff.cluster.watch import until_done
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import RunError
from bigdiff.config.graph import chain
from bigdiff.config.load import load_stage
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage


def of(*stages: Stage) -> Chain:
    return Chain(recipe="", nodes=chain(stages), runs=stages[0].runs)


def submit(wanted: Chain, cluster: Cluster) -> list[str]:
    return list(submitted(wanted, cluster, check(wanted, cluster)))


def test_a_finished_stage_is_not_waited_for(tmp_path: Path, toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=done"])
    folder = tmp_path / "done" / "checkpoints" / "step-00000020"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    said: list[str] = []
    until_done(of(stage), said.append)
    assert said == ["done is finished"]


def test_states_and_lines_are_shown_until_the_end(slurm: Any, toy: Path, tmp_path: Path, cluster: Cluster) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=followed", "steps=8", "log.every=1"])
    (line,) = submit(of(stage), replace(cluster, nodes=1))
    said: list[str] = []
    until_done(of(stage), said.append, pause=0.2)
    job = line.split()[4].rstrip(",")
    states = [one for one in said if one.startswith("followed")]
    assert f"followed: job {job} is running on n1" in states
    assert states[-1] == "followed is finished" or states[-1].startswith(f"followed: job {job} is finished")
    assert any(" 8/8  loss " in one for one in said), said


def test_a_job_that_is_cancelled_ends_the_watch(slurm: Any, toy: Path, tmp_path: Path, cluster: Cluster) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=cancelled"])
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    said: list[str] = []
    watching = _beside(lambda: until_done(of(stage), said.append, pause=0.1, grace=0.5))
    try:
        (line,) = submit(of(stage), replace(cluster, nodes=1))
        job = line.split()[4].rstrip(",")
        failed = watching(lambda: any("pending" in one for one in said), lambda: slurm.run("scancel", job))
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert f"cancelled: job {job} is pending (PartitionDown)" in said
    assert isinstance(failed, RunError) and "cancelled ended at step 0 of 20 (logs in" in str(failed)


def test_tasks_at_checkpoints_are_followed_and_stop_nothing(tmp_path: Path, toy: Path) -> None:
    """One that is done, one that never was submitted, one whose job is gone; the stage is finished."""
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=done"])
    for step in (5, 10, 15, 20):
        folder = tmp_path / "done" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "index.json").write_text("{}")
    judge = Task(name="judge", run=("x.py", "{step}"), makes=f"{tmp_path}/judged-{{step}}", after=("done",), every=5)
    wanted = replace(of(stage), recipe="r", beside=(judge,))
    (tmp_path / "judged-5").touch()
    log = tmp_path / "jobs" / "r" / "judge-10" / "logs" / "20261122-101500-17" / "17_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("it said this\n")
    said: list[str] = []

    def then(line: str) -> None:
        said.append(line)
        if line == "judge-20 is not started":
            (tmp_path / "judged-20").touch()

    with pytest.raises(RunError, match=r"^judge-10 ended \(logs in .*/jobs/r/judge-10/logs\)$"):
        until_done(wanted, then, pause=0.05, grace=0.3)
    assert not any("judge-5 " in line for line in said), "it was done before"
    for line in ("done is finished", "it said this", "judge-10 is stopped", "judge-20 is finished"):
        assert line in said
    assert "judge-15 was not submitted: the same command again submits it" in said


def _beside(work: Callable[[], None]) -> Callable[[Callable[[], bool], Callable[[], object]], BaseException | None]:
    """Start `work` in a thread when called with a condition to wait for and what to do then; what it raised."""

    def run(condition: Callable[[], bool], then: Callable[[], object]) -> BaseException | None:
        raised: list[BaseException] = []

        def caught() -> None:
            try:
                work()
            except RunError as error:
                raised.append(error)

        thread = threading.Thread(target=caught)
        thread.start()
        for _ in range(600):
            if condition():
                break
            threading.Event().wait(0.05)
        then()
        thread.join(60)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return run
