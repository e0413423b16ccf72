from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bigdiff.report import folder, headline
from bigdiff.report.folder import Folder
from bigdiff.report.headline import moment

SPEED = {
    "speed/tflops_per_device": 312.5,
    "speed/mfu": 0.316,
    "speed/restarts": 2.0,
    "cost/so_far": 1234.5,
    "cost/left": 10.0,
    "speed/data_wait_fraction": 0.0125,
    "speed/slowest_rank": 1.5,
    "memory/peak_gb": 61.25,
}


def cells(html: str, parsed: Callable[[str], Any]) -> dict[str, str]:
    texts = parsed(html).texts
    return dict(pairwise(texts))


def test_the_table_answers_each_question(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made(4, (), **SPEED)
    (run / "versions.json").write_text('{"commit": "abc123"}')
    saved = run / "checkpoints" / "step-00000030"
    saved.mkdir(parents=True)
    (saved / "index.json").write_text("{}")
    found = folder.read(run)
    row = cells(headline.written(found), parsed)
    steps, batch = found.stage.steps, found.stage.batch.total
    assert row["stage"] == "quickstart-32px"
    assert row["state"] == "stopped"
    assert row["steps"] == f"40 of {steps:,} ({40 / steps:.1%})"
    assert row["images seen"] == f"{40 * batch:,}"
    assert row["images/s"] == "250.0 (mean 250.0)"
    assert row["data wait"] == "1.25% (mean 1.25%)"
    assert row["TFLOP/s a device"] == "312 (mean 312)" and row["MFU"] == "31.6% (mean 31.6%)"
    assert row["starts again"] == "2" and row["money"] == "1,234.50 so far, 10.00 to come"
    assert row["slowest rank"] == "1.50 (mean 1.50)"
    assert row["peak memory"] == "61.25 GB"
    assert row["time left"] == f"{(steps - 40) * batch / 250 / 3600:.2f} hours, once it goes on"
    assert row["last checkpoint"] == "step 30" and row["step 30"] == "checkpoints/step-00000030"
    assert row["commit"] == "abc123"
    assert row["last reading"] == moment(1.7e9 + 40) == "2023-11-14 22:14:00 UTC"
    top = cells(headline.top(found), parsed)
    assert top["stopped"] == f"40 of {steps:,} steps"
    assert top["0.25"] == "loss; 1 at the first reading"


def test_a_run_that_has_just_begun_has_no_rows_of_nothing(
    told: Callable[..., Folder], parsed: Callable[[str], Any]
) -> None:
    found = told()
    row = cells(headline.written(found), parsed)
    assert "It has begun and written no reading yet." in row
    assert row["last checkpoint"] == "none yet"
    assert not {"images/s", "data wait", "time left", "peak memory", "last reading", "commit"} & row.keys()
    assert "images/s" not in headline.top(found)
