import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import judging, report
from bigdiff.evaluate.point import Point
from bigdiff.quickstart.job import SCORES
from bigdiff.report import folder, scores

POINTS = [
    Point(guidance=1.5, images=30_000, fid=21.234567, clip_score=0.61, clip_cosine=0.24),
    Point(guidance=5.0, images=30_000, fid=14.0, clip_score=0.77, clip_cosine=0.31, singular=True),
]
JUDGED = {"scores": {"shape": {"accuracy": 0.9296, "chance": 0.3333, "oracle": 1.0}}, "seconds": {}}


def shown(run: Path) -> str:
    return scores.written(folder.read(run))


def test_the_files_are_those_that_are_written() -> None:
    assert (scores.RESULTS, scores.RESULT, scores.CURVE) == (report.RESULTS, judging.RESULT, report.CURVE)
    assert Path(SCORES).match(scores.JUDGED) and Path("scores-100.json").match(scores.JUDGED)


def test_what_the_judge_says_is_told_of_the_end_and_of_a_step(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    assert "None yet" in shown(run)
    (run / SCORES).write_text(json.dumps(JUDGED))
    (run / "scores-100.json").write_text(json.dumps(JUDGED))
    texts = parsed(shown(run)).texts
    assert "Held-out captions at its end" in texts and "Held-out captions at step 100" in texts
    at = texts.index("shape")
    assert texts[at + 1 : at + 4] == ["0.93", "0.33", "1.00"]


def test_an_evaluation_is_told_as_launch_evaluate_left_it(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    wanted = Evaluation(output=run / "evaluation", judges=Judges(clip="c"), pipeline=Path("model"))
    report.write(wanted, POINTS, {"settings": {"samples_seen": 41_600}})
    reader = parsed(shown(run))
    assert "Judged in evaluation/ after 41,600 images" in reader.texts
    at = reader.texts.index("clip_cosine")
    assert reader.texts[at + 1 : at + 11] == [
        "1.5",
        "30,000",
        "21.235",
        "0.61",
        "0.24",
        "5",
        "30,000",
        "14",
        "0.77",
        "0.31",
    ]
    assert any(text.startswith("fid: Frechet distance") for text in reader.texts)
    assert any("far too high" in text for text in reader.texts)
    assert len(reader.sources) == 1, "FID against CLIP-SCORE"


def test_an_evaluation_that_is_under_way_shows_what_there_is(made: Callable[..., Path]) -> None:
    run = made()
    done = run / "evaluation" / "guidance-5"
    done.mkdir(parents=True)
    (done / judging.RESULT).write_text(json.dumps({"point": asdict(POINTS[1]), "real": None}))
    assert "Judged in evaluation/, not finished" in shown(run) and "30,000" in shown(run)


@pytest.mark.parametrize("broken", ['{"scores"', '{"scores": [1]}', '{"scores": {"a": {"accuracy": "x"}}}', "{}"])
def test_damaged_scores_are_named(made: Callable[..., Path], broken: str) -> None:
    run = made()
    (run / SCORES).write_text(broken)
    with pytest.raises(UsageError, match=r"scores\.json is not"):
        shown(run)
    (run / SCORES).unlink()
    (run / "evaluation").mkdir()
    (run / "evaluation" / report.RESULTS).write_text('{"points": [{"fid": 1}]}')
    with pytest.raises(UsageError, match=r"results\.json is not what launch/evaluate\.py writes"):
        shown(run)
