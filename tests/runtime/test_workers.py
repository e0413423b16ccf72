import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigdiff.config.errors import RunError
from bigdiff.runtime.workers import Workers

PARENT = """
import sys, time
from bigdiff.runtime.workers import Workers
from tests_sleep import sleep
if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.each(sleep, [sys.argv[1]] * 2, "sleeping"))
"""
CHILD = """
import os, time
from pathlib import Path
def sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)
"""


def test_outcomes_come_in_the_order_of_the_tasks_whatever_the_number_of_processes() -> None:
    tasks = [20_000, 1, 15_000, 2, 3, 10_000, 4]  # the first takes longest
    wanted = [math.factorial(number) for number in tasks]
    with Workers(2) as workers:
        assert list(workers.each(math.factorial, tasks, "factorials")) == wanted
        assert list(workers.each(math.sqrt, [4, 9], "another phase")) == [2, 3]
    with Workers(1) as workers:
        assert list(workers.each(math.factorial, tasks, "factorials")) == wanted


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    with Workers(2) as workers, pytest.raises(RunError, match="killed while dying"):
        list(workers.each(os._exit, [9, 9], "dying"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "tests_sleep.py").write_text(CHILD)
    started = tmp_path / "started"
    started.mkdir()
    parent = subprocess.Popen([sys.executable, "parent.py", str(started)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    _until(lambda: len(list(started.iterdir())) == 2)
    workers = [int(path.name) for path in started.iterdir()]
    parent.kill()
    parent.wait()
    _until(lambda: not any(_runs(process) for process in workers))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_second_ctrl_c_ends_what_the_first_waits_for(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "tests_sleep.py").write_text(CHILD)
    started = tmp_path / "started"
    started.mkdir()
    parent = subprocess.Popen([sys.executable, "parent.py", str(started)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    _until(lambda: len(list(started.iterdir())) == 2)
    workers = [int(path.name) for path in started.iterdir()]
    parent.send_signal(signal.SIGINT)
    time.sleep(1)
    assert parent.poll() is None  # it waits for a minute's sleep
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=20) != 0
    _until(lambda: not any(_runs(process) for process in workers))


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _until(condition: object) -> None:
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_sees_the_device_that_is_its_own() -> None:
    with Workers(2, ["5", "7"]) as workers:
        seen = set(workers.each(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 40, "looking"))
    assert seen <= {"5", "7"}
    assert seen


def test_without_a_gpu_networks_run_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Workers(2) as workers, workers.on_devices() as devices:
        assert list(devices.each(_identity, [1, 2], "asking")) == [os.getpid()] * 2
    assert Workers(2).machines == 1


def _identity(_: int) -> int:
    return os.getpid()


def test_as_many_processes_as_are_wanted_work_with_networks() -> None:
    ask = ["__import__('time').sleep(0.05) or __import__('os').getpid()"] * 12
    with Workers(1).on_devices(2) as workers:
        assert os.getpid() not in set(workers.each(eval, ask, "asking"))
