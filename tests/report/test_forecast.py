from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.plan import comparison
from bigdiff.plan.comparison import Comparison, Pair
from bigdiff.report import folder, forecast
from bigdiff.runtime.files import write_json
from bigdiff.train.memory import Part

FOUND = Comparison(
    stage="quickstart-32px",
    device="cpu",
    devices=2,
    nodes=1,
    lines=7,
    pairs=(
        Pair(what="steps", predicted=700, measured=700),
        Pair(what="GFLOP an image", predicted=1.25, measured=None),
        Pair(what="a checkpoint, MB", predicted=27.5, measured=55.0),
    ),
    parts=(Part(name="weights", span="always", bytes=7_000_000),),
    assumed=("text encoder x is not on this machine",),
    absent=("times and cost: no peak of cpu",),
)


def test_both_stand_beside_each_other_and_what_is_absent_says_why(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    assert forecast.RECORD == comparison.RECORD
    run = made(3)
    write_json(run / comparison.RECORD, asdict(FOUND))
    texts = parsed(forecast.written(folder.read(run))).texts
    for row in (["steps", "700", "700", "1.00"], ["a checkpoint, MB", "27.5", "55", "2.00"]):
        at = texts.index(row[0])
        assert texts[at : at + 4] == row
    at = texts.index("GFLOP an image")
    assert texts[at + 1] == "1.25" and "0.00" not in texts
    assert "Not compared: times and cost: no peak of cpu." in texts
    assert any("weights (always): 7.0 MB" in text for text in texts)


def test_a_run_without_one_says_so_and_a_damaged_one_is_named(made: Callable[..., Path]) -> None:
    run = made(3)
    assert "There is no forecast" in forecast.written(folder.read(run))
    (run / comparison.RECORD).write_text('{"pairs": 3}')
    with pytest.raises(UsageError, match=r"forecast\.json is not what bigdiff\.plan\.comparison writes"):
        forecast.written(folder.read(run))
