import time
from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.cluster import crash, starts
from bigdiff.cluster.crash import Crash
from bigdiff.cluster.starts import RECORD, UNTOLD
from bigdiff.config.errors import RunError
from bigdiff.runtime.records import write

CRASH = Crash(time=0.0, job="20261121-101500-17", nodes="n1", status=137, step=4, kind="passing", why="it is gone")


def test_each_start_says_how_the_one_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    starts.begin(tmp_path, CRASH.job, 0)
    starts.end(tmp_path, "told to stop (SIGUSR2), saved at step 30")
    starts.begin(tmp_path, CRASH.job, 30)
    (first, second) = starts.starts(tmp_path)
    assert (first.ended, first.step, first.nodes) == ("told to stop (SIGUSR2), saved at step 30", 0, "n[1-2]")
    assert 0 <= first.seconds < 60 and second == replace(second, job=CRASH.job, step=30, ended="", seconds=0.0)
    # one that could not say it
    write(tmp_path / crash.RECORD, [CRASH, replace(CRASH, time=second.time)])
    time.sleep(0.01)
    starts.begin(tmp_path, CRASH.job, 40)
    starts.begin(tmp_path, CRASH.job, 40)
    assert [one.ended for one in starts.starts(tmp_path)[1:]] == ["crashed: it is gone", UNTOLD, ""]


def test_a_crash_of_another_job_or_of_an_earlier_start_is_not_this_ones_end() -> None:
    start = starts.Start(time=10.0, job=CRASH.job, nodes="n1", step=0)
    assert starts.told(start, [replace(CRASH, time=9.0), replace(CRASH, time=11.0, job="other")]) == UNTOLD
    assert starts.told(start, [replace(CRASH, time=11.0)]) == "crashed: it is gone"


@pytest.mark.parametrize("content", ["{", "[1]", '[{"step": 4}]', "4"])
def test_a_record_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(RunError, match=r"starts\.json is not a list of starts"):
        starts.starts(tmp_path)


def test_a_run_without_a_record_has_no_starts(tmp_path: Path) -> None:
    assert starts.starts(tmp_path) == []
