import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bigdiff.cluster.array import Array, Pace, parameters, spread
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import RunError, UsageError
from bigdiff.runtime.workers import Workers

CLUSTER = Cluster(
    name="test",
    nodes=2,
    processes_per_node=1,
    gpus_per_node=0,
    cpus_per_process=2,  # a node's
    time_minutes=5,
    account="",
    partition="",
)
QUICK = Pace(look=0.1, ask=0.5, grace=1.0)
Slurm = Any


def array(folder: Path, **changed: Any) -> Array:
    return Array(**{"cluster": CLUSTER, "folder": folder, "machines": 3, "processes": 1, "pace": QUICK, **changed})


def test_outcomes_come_in_the_order_of_the_tasks(slurm: Slurm, tmp_path: Path) -> None:
    def work(number: int) -> tuple[int, str]:
        time.sleep(1.5 if number < 2 else 0)  # so that two elements are there at the same time
        return number**2, os.environ["SLURMD_NODENAME"]

    found = list(array(tmp_path).each(work, range(7), "squares"))
    assert [square for square, _ in found] == [number**2 for number in range(7)]
    assert len({node for _, node in found}) > 1
    assert list(array(tmp_path).each(work, [], "nothing")) == []
    assert not (tmp_path / "submitted.json").exists()


def test_only_the_parts_that_failed_run_again(slurm: Slurm, tmp_path: Path) -> None:
    def work(number: int) -> int:
        with (tmp_path / f"ran-{number}").open("a") as log:
            log.write("x")
        if number == 1 and (tmp_path / "ran-1").stat().st_size == 1:
            raise RuntimeError("the disk hiccups")
        return number

    assert list(array(tmp_path / "jobs").each(work, range(3), "work")) == [0, 1, 2]
    assert [(tmp_path / f"ran-{number}").read_text() for number in range(3)] == ["x", "xx", "x"]


def test_a_part_that_fails_twice_ends_it_with_its_words_and_its_log(slurm: Slurm, tmp_path: Path) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise RunError("part 2 cannot be read")
        return number

    with pytest.raises(RunError, match=r"1 of 3 parts failed twice.*part 2 cannot be read.*\d+_0_log\.out"):
        list(array(tmp_path).each(work, range(3), "work"))


def test_a_part_whose_process_is_killed_runs_again(slurm: Slurm, tmp_path: Path) -> None:
    def work(number: int) -> int:
        if number == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert list(array(tmp_path / "jobs").each(work, range(2), "work")) == [0, 1]
    assert (tmp_path / "died").exists()


def test_a_killed_command_leaves_an_array_which_the_next_one_ends(slurm: Slurm, tmp_path: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom bigdiff.cluster.array import Array, Pace\n"
        "from bigdiff.config.cluster import Cluster\n"
        "def work(number):\n    import pathlib, time\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'began-{{number}}').touch()\n    time.sleep(120)\n"
        "cluster = Cluster(name='test', nodes=2, gpus_per_node=0, cpus_per_process=1, time_minutes=5)\n"
        f"jobs = Array(cluster=cluster, folder=Path({str(tmp_path / 'jobs')!r}), machines=2, processes=1,"
        " pace=Pace(look=0.1))\n"
        "list(jobs.each(work, range(2), 'sleeping'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    _until(lambda: len(list(tmp_path.glob("began-*"))) == 2)
    process.kill()
    process.wait()
    left = set(json.loads((tmp_path / "jobs" / "submitted.json").read_text()))
    assert slurm.run("squeue", "-h", "-t", "running", "-o", "%A").split()
    assert list(array(tmp_path / "jobs").each(abs, [-1], "again")) == [1]
    assert not left & set(slurm.run("squeue", "-h", "-o", "%A").split())


def test_ctrl_c_cancels(slurm: Slurm, tmp_path: Path) -> None:
    def work(number: int) -> None:
        (tmp_path / f"began-{number}").touch()
        time.sleep(120)

    def interrupt() -> None:
        _until(lambda: (tmp_path / "began-0").exists())
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(array(tmp_path / "jobs", machines=2).each(work, [0, 1], "sleeping"))
    _until(lambda: not slurm.run("squeue", "-h"))
    assert not (tmp_path / "jobs" / "submitted.json").exists()


def test_what_sbatch_refuses_is_said_in_its_words(slurm: Slurm, tmp_path: Path) -> None:
    absent = Cluster(name="test", nodes=1, gpus_per_node=0, cpus_per_process=1, time_minutes=5, partition="absent")
    with pytest.raises(RunError, match="invalid partition"):
        list(array(tmp_path, cluster=absent).each(abs, [1], "work"))


def test_parameters_say_what_an_element_needs() -> None:
    with_gpus = Cluster(name="g", nodes=5, gpus_per_node=8, cpus_per_process=12, partition="gpu", account="me")
    cpu = parameters(with_gpus, "taking over", 4, device=False)
    assert (cpu["nodes"], cpu["ntasks_per_node"], cpu["cpus_per_task"], cpu["gpus_per_node"]) == (1, 1, 12, None)
    assert (cpu["array_parallelism"], cpu["partition"], cpu["account"]) == (5, "gpu", "me")
    assert cpu["job_name"] == "bigdiff-taking-over"
    assert parameters(with_gpus, "scoring", 1, device=True)["gpus_per_node"] == 1
    assert parameters(CLUSTER, "scoring", 1, device=True)["gpus_per_node"] is None
    assert parameters(with_gpus, "verifying", 16, device=False)["cpus_per_task"] == 16


def test_options_that_do_not_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(spread("local", None, None, 2, tmp_path), Workers)
    for options, sentence in (
        (("local", "example", None), "--cluster has no effect"),
        (("local", None, 3), "--machines has no effect"),
        (("slurm", None, None), "needs --cluster"),
        (("slurm", "local", None), "kind local"),
    ):
        with pytest.raises(UsageError, match=sentence):
            spread(*options, 2, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch not found"):
        spread("slurm", "example", None, 2, tmp_path)


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
