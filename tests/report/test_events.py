import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster import starts
from bigdiff.cluster.crash import RECORD, Crash
from bigdiff.config.errors import UsageError
from bigdiff.report import events, folder
from bigdiff.report.folder import Folder
from bigdiff.runtime import records
from bigdiff.train import incidents, usage

INCIDENT = {
    "time": 1795274763.406,
    "start": "x",
    "step": 25,
    "action": "roll back",
    "reason": "loss spike",
    "detail": "loss 2.774e+06",
    "window": [20, 26],
    "samples": [{"key": f"key-{number}"} for number in range(5)],
}


def test_the_record_of_incidents_is_the_one_that_a_run_writes() -> None:
    assert (events.INCIDENTS, events.USAGE) == (incidents.FILE, usage.RECORD)


def test_everything_that_happened_is_told(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made(3, (), **{"data/damaged": 4.0, "data/tombstoned": 0.0})
    starts.begin(run / "logs", "20260101-000000-1", 0)
    starts.begin(run / "logs", "20260101-000000-1", 20)
    starts.end(run / "logs", "stopped at step 30 (SIGUSR2)")
    crash = Crash(time=9.0, job="j", nodes="n[1-2]", status=137, step=7, kind="passing", why="<b>", blamed=("n2",))
    records.write(run / "logs" / RECORD, [crash])
    lines = [INCIDENT, {**INCIDENT, "action": "skip", "reason": "non-finite loss"}]
    (run / "recovery.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"half')
    html = events.written(folder.read(run))
    texts = parsed(html).texts
    for text in (
        "2 starts",
        starts.UNTOLD,
        "stopped at step 30 (SIGUSR2)",
        "1 crash",
        "<b>",
        "137",
        "n2",
        "2 incidents: 1 rolled back, 1 left out",
        "20 to 25",
        "loss spike: loss 2.774e+06",
        "key-0, key-1, key-2 and 2 more",
        "Damaged samples that were substituted: 4 since the newest start, at most 4 in one.",
    ):
        assert text in texts, text
    assert "taken-down" not in html.lower()


def test_starts_without_slurm_are_told_from_what_they_used(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    first = usage.Start(time=1.7e9, devices=8, device="NVIDIA <H200>", flops=1, network="x", seconds=9000.0)
    records.write(run / usage.RECORD, [first, replace(first, devices=4, seconds=0.0)])
    texts = parsed(events.written(folder.read(run))).texts
    for text in ("2 starts", "8 x NVIDIA <H200>", "2.5 h", "4 x NVIDIA <H200>", "not told: it is the newest"):
        assert text in texts, text
    for broken in ("{", "[{}]", "[1]"):
        (run / usage.RECORD).write_text(broken)
        with pytest.raises(UsageError, match=r"usage\.json (is not a list of starts|has a start without)"):
            events.written(folder.read(run))


def test_where_nothing_happened_a_line_says_so(told: Callable[..., Folder]) -> None:
    html = events.written(told(1))
    assert html.count("<p>") == 4 and "<table" not in html
    assert "No step was left out or rolled back." in html


def test_a_long_story_is_cut_to_its_end(made: Callable[..., Path]) -> None:
    run = made()
    many = [json.dumps({**INCIDENT, "step": step}) for step in range(events.SHOWN + 10)]
    (run / "recovery.jsonl").write_text("\n".join(many) + "\n")
    html = events.written(folder.read(run))
    assert html.count("<tr>") == events.SHOWN + 1
    assert f"{events.SHOWN + 10} incidents" in html and f"The newest {events.SHOWN} are shown." in html


def test_a_damaged_record_is_named(made: Callable[..., Path]) -> None:
    run = made()
    (run / "recovery.jsonl").write_text(json.dumps(asdict(starts.Start(time=1.0, job="", nodes="", step=1))) + "\n")
    with pytest.raises(UsageError, match=r"recovery\.jsonl line 1 is no incident"):
        events.written(folder.read(run))
