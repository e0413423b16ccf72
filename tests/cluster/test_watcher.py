import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bigdiff.checkpoint import layout
from bigdiff.cluster import watcher
from bigdiff.cluster.watcher import Beside, due, watching
from bigdiff.config.cluster import Cluster
from bigdiff.config.recipe import Task

JUDGE = Task(name="judge", run=("x.py", "--step", "{step}"), makes="{step}", after=("stage",), every=20)
GRID = Task(name="grid", run=("y.py", "{step}"), makes="grid-{step}", after=("stage",), every=40)


def save(run: Path, step: int) -> None:
    folder = layout.checkpoint(run, step)
    folder.mkdir(parents=True)
    (folder / layout.INDEX).write_text("{}")


def beside(folder: Path) -> Beside:
    task = Task(name="judge", run=("x.py", "{step}"), makes=f"{folder}/made-{{step}}", after=("stage",), every=20)
    return Beside(recipe="r", tasks=(task,), cluster=Cluster(name="c"))


class Submitted:
    """Keeps what was submitted; refuses as long as it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Path]] = []
        self.well = True

    def __call__(self, task: Task, folder: Path, cluster: Cluster) -> tuple[bool, str]:
        assert cluster.name == "c"
        self.asked.append((task.name, folder))
        return self.well, f"{task.name} {'submitted' if self.well else 'refused'}"


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_task_is_due_at_each_checkpoint_of_its_steps(tmp_path: Path) -> None:
    assert due(tmp_path, [JUDGE, GRID]) == []
    for step in (10, 20, 40, 55):
        save(tmp_path, step)
    (layout.checkpoints(tmp_path) / "step-00000060").mkdir()  # not whole yet
    found = due(tmp_path, [JUDGE, GRID])
    assert [one.name for one in found] == ["judge-20", "judge-40", "grid-40"]
    assert found[0].run == ("x.py", "--step", "20") and found[2].makes == "grid-40"
    assert all(one.every == 0 and one.after == () for one in found)


def test_each_checkpoint_is_submitted_once_while_the_stage_trains(tmp_path: Path) -> None:
    run, said, submit = tmp_path / "runs" / "stage", list[str](), Submitted()
    save(run, 20)
    with watching(run, beside(tmp_path), said.append, submit, pause=0.01):
        until(lambda: len(submit.asked) == 1)
        save(run, 40)
        until(lambda: len(submit.asked) == 2)
        time.sleep(0.1)
        save(run, 60)  # found by the last look, if by no other
    logs = tmp_path / "runs" / "jobs" / "r"
    assert submit.asked == [(f"judge-{step}", logs / f"judge-{step}") for step in (20, 40, 60)]
    assert said == [f"judge-{step} submitted" for step in (20, 40, 60)]


def test_what_is_made_already_is_left_alone(tmp_path: Path) -> None:
    run, submit = tmp_path / "stage", Submitted()
    save(run, 20)
    (tmp_path / "made-20").touch()
    with watching(run, beside(tmp_path), print, submit):
        pass
    assert submit.asked == []


def test_what_could_not_be_submitted_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AGAIN", 0.05)
    run, said, submit = tmp_path / "stage", list[str](), Submitted()
    submit.well = False
    save(run, 20)
    with watching(run, beside(tmp_path), said.append, submit, pause=0.01):
        until(lambda: len(submit.asked) >= 2)
        submit.well = True
        until(lambda: said[-1] == "judge-20 submitted")
    assert said.count("judge-20 submitted") == 1


def test_a_run_that_ends_by_an_exception_has_no_last_look(tmp_path: Path) -> None:
    submit = Submitted()
    save(tmp_path, 20)
    with pytest.raises(RuntimeError, match="ours"), watching(tmp_path, beside(tmp_path), print, submit):
        raise RuntimeError("ours")
    assert submit.asked == []


def test_a_refusal_is_a_line_not_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process, without SLURM's programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    task = Task(name="judge-20", run=("x.py",), makes=str(tmp_path / "made"))
    well, line = watcher.outside(task, tmp_path / "logs", Cluster(name="c", gpus_per_node=0, processes_per_node=1))
    assert (well, line.partition(":")[0]) == (False, "judge-20 is not submitted")
    assert "sbatch not found" in line
    (tmp_path / "made").touch()
    done = watcher.outside(task, tmp_path / "logs", Cluster(name="c"))
    assert done == (True, f"judge-20 is finished: {tmp_path / 'made'} is there")
