import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from bigdiff.cluster import starts
from bigdiff.cluster.crash import Crash
from bigdiff.config.errors import UsageError
from bigdiff.report import folder, headline
from bigdiff.report.folder import Folder

CRASH = Crash(time=5.0, job="j", nodes="n[1-2]", status=137, step=7, kind="passing", why="killed", blamed=("n2",))


def test_a_run_that_has_just_begun_can_be_told(told: Callable[..., Folder]) -> None:
    found = told()
    assert (found.stage.name, found.standing.state, found.seen) == ("quickstart-32px", "not started", 0)
    assert (found.readings.count, found.starts, found.about) == (0, (), {})


def test_what_lies_in_the_folder_is_what_is_told(made: Callable[..., Path]) -> None:
    run = made(3)
    (run / "versions.json").write_text('{"commit": "abc"}')
    starts.begin(run / "logs", "20260101-000000-1", 0)
    starts.end(run / "logs", "finished")
    (run / "logs" / "crashes.json").write_text(json.dumps([asdict(CRASH)]))
    found = folder.read(run)
    assert found.standing.state == "failed" and found.standing.step == 30
    assert found.seen == 30 * found.stage.batch.total
    assert [one.ended for one in found.starts] == ["finished"]
    assert found.found.crashes == (CRASH,)
    assert found.about == {"commit": "abc"}


def test_a_finished_run_has_seen_what_its_checkpoint_says(made: Callable[..., Path]) -> None:
    run = made()
    stage = folder.read(run).stage
    saved = run / "checkpoints" / f"step-{stage.steps:08d}"
    saved.mkdir(parents=True)
    (saved / "index.json").write_text("{}")
    found = folder.read(run)
    assert (found.standing.state, found.seen) == ("finished", stage.steps * stage.batch.total)


def test_without_an_answer_of_slurm_the_folder_alone_is_asked_and_the_page_says_so(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(1)
    job = run / "logs" / "20260101-000000-17"
    job.mkdir(parents=True)
    (job / "17_submission.sh").touch()
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 17'|RUNNING||n1'\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho Restarts=0\n")
    for client in ("squeue", "scontrol"):
        (tmp_path / client).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = folder.read(run)
    assert (found.standing.state, found.doubt) == ("running", "")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    found = folder.read(run)
    assert found.standing.state == "stopped"
    assert "by its folder alone, for squeue does not answer: no controller" in headline.written(found)


def test_what_is_no_run_is_said(tmp_path: Path, made: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        folder.read(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"holds no config\.yaml: it is no run, or has not begun"):
        folder.read(tmp_path)
    run = made()
    (run / "logs").mkdir()
    for name in ("logs/starts.json", "logs/crashes.json", "versions.json", "config.yaml"):
        (run / name).write_text("{broken")
        with pytest.raises(UsageError, match=name):
            folder.read(run)
        (run / name).unlink()
        made()
