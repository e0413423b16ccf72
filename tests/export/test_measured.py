import json
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.export.measured import ORIGIN, RESULTS, scores

POINT = {"guidance": 3.0, "images": 30000, "fid": 12.5, "clip_score": None, "singular": False}
FOUND = {"points": [POINT], "means": {"fid": "a distance"}, "settings": {"steps": 50, "scheduler": "ddim", "real": ""}}
CHECKPOINT = Path("elsewhere") / "checkpoints" / "step-00000007"


def put(run: Path, name: str, checkpoint: str, which: str, found: dict[str, Any]) -> None:
    folder = run / name
    folder.mkdir(parents=True)
    (folder / ORIGIN).write_text(json.dumps({"checkpoint": f"/once/here/{checkpoint}", "about": which}))
    (folder / RESULTS).write_text(json.dumps(found))


def test_only_what_was_found_of_these_weights_is_told(tmp_path: Path) -> None:
    put(tmp_path, "evaluation/7", "step-00000007", "raw", FOUND)
    put(tmp_path, "other", "step-00000014", "raw", FOUND)
    put(tmp_path, "average", "step-00000007", "exponential", FOUND)
    put(tmp_path, "deeper/than/that", "step-00000007", "raw", FOUND)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / RESULTS).write_text(json.dumps(FOUND))  # of a pipeline
    lines = scores(tmp_path, CHECKPOINT, "raw")
    assert lines == [
        "Judged by launch/evaluate.py (evaluation/7: scheduler ddim, steps 50):",
        "",
        "| guidance | images | fid |",
        "|---|---|---|",
        "| 3 | 30,000 | 12.5 |",
        "",
        "- **fid**: a distance",
        "",
    ]
    assert scores(tmp_path, CHECKPOINT, "another average") == []


def test_a_fid_of_too_few_pictures_is_told_as_one(tmp_path: Path) -> None:
    put(tmp_path, "few", "step-00000007", "raw", {**FOUND, "points": [{**POINT, "singular": True}]})
    assert any("far too high" in line for line in scores(tmp_path, CHECKPOINT, "raw"))


@pytest.mark.parametrize("broken", ["{", "[]", '{"points": 4}', '{"points": [POINT]}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, broken: str) -> None:
    put(tmp_path, "evaluation", "step-00000007", "raw", FOUND)
    (tmp_path / "evaluation" / RESULTS).write_text(broken)
    with pytest.raises(UsageError, match=r"evaluation is not what launch/evaluate\.py writes .*: run it again"):
        scores(tmp_path, CHECKPOINT, "raw")
