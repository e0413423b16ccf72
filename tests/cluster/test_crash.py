import json
from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.cluster.crash import RECORD, Crash, avoided, crashes, endured
from bigdiff.config.errors import RunError
from bigdiff.runtime.records import write

CRASH = Crash(time=1.5, job="20261121-101500-17", nodes="n[1-3]", status=137, step=4, kind="passing", why="it is gone")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    every = [CRASH, replace(CRASH, kind="node", blamed=("n2", "n3"))]
    write(tmp_path / RECORD, every)
    assert crashes(tmp_path) == every


def test_a_record_without_blame_is_read(tmp_path: Path) -> None:
    write(tmp_path / RECORD, [CRASH])
    (one,) = json.loads((tmp_path / RECORD).read_text())
    del one["blamed"]
    (tmp_path / RECORD).write_text(json.dumps([one]))
    assert crashes(tmp_path) == [CRASH]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"step": 4}]', "4"])
def test_a_record_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(RunError, match=r"crashes\.json is not a list of crashes"):
        crashes(tmp_path)


def test_a_node_is_avoided_at_once_for_what_it_cannot_do_and_at_the_second_time_for_what_died_there() -> None:
    died, broken = replace(CRASH, blamed=("n2",)), replace(CRASH, kind="node", blamed=("n1", "n3"))
    assert avoided(broken, []) == ("n1", "n3")
    assert avoided(died, []) == () == avoided(died, [replace(died, blamed=("n3",)), replace(died, job="other")])
    assert avoided(died, [died]) == ("n2",) == avoided(died, [replace(broken, blamed=("n2",))])
    assert avoided(replace(died, kind="lasting"), [died]) == ()


def test_a_node_that_came_back_is_endured_by_its_job_alone(tmp_path: Path) -> None:
    slow = replace(CRASH, kind="node", blamed=("n2",))
    write(tmp_path / RECORD, [slow, replace(CRASH, blamed=("n1",)), replace(slow, job="other", blamed=("n4",))])
    assert endured(tmp_path, CRASH.job) == ("n2",)
    assert endured(tmp_path / "none", CRASH.job) == ()
