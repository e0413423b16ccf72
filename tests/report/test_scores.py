import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import report
from bigdiff.evaluate.point import Point
from bigdiff.quickstart.job import SCORES
from bigdiff.report import folder, scores


def judged(run: Path, accuracy: float, step: str = "") -> None:
    """As the quickstart's judge writes it."""
    found = {"shape": {"accuracy": accuracy, "chance": 0.3333, "oracle": 1.0}}
    (run / SCORES.replace(".json", f"{step}.json")).write_text(json.dumps({"scores": found, "seconds": {}}))


def shown(run: Path) -> str:
    return scores.written(folder.read(run))


def test_what_the_judge_says_is_a_table(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made()
    assert "None yet" in shown(run)
    judged(run, 0.9296)
    texts = parsed(shown(run)).texts
    assert "Held-out captions at its end" in texts
    at = texts.index("shape")
    assert texts[at + 1 : at + 4] == ["0.93", "0.33", "1.00"]
    assert "<svg" not in shown(run), "one is no curve"


def test_scores_of_several_steps_are_a_curve_and_the_newest_is_the_table(made: Callable[..., Path]) -> None:
    run = made()
    for step, accuracy in ((5, 0.1), (100, 0.9), (20, 0.5)):
        judged(run, accuracy, f"-{step}")
    html = shown(run)
    assert "Held-out captions at step 100" in html and "0.90" in html
    (line,) = (part.partition('"')[0].split() for part in html.split('points="')[1:])
    xs, ys = zip(*(map(float, point.split(",")) for point in line), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True), "in the order of steps, rising"


def test_evaluations_stand_in_the_same_section(made: Callable[..., Path]) -> None:
    run = made()
    wanted = Evaluation(output=run / "evaluation", judges=Judges(clip="c"), pipeline=Path("model"))
    report.write(wanted, [Point(guidance=3.0, images=8, clip_score=0.5, clip_cosine=0.2)], {"settings": {}})
    assert "Judged in evaluation" in shown(run) and "None yet" not in shown(run)


@pytest.mark.parametrize("broken", ['{"scores"', '{"scores": [1]}', '{"scores": {"a": {"accuracy": "x"}}}', "{}"])
def test_damaged_scores_are_named(made: Callable[..., Path], broken: str) -> None:
    run = made()
    (run / SCORES).write_text(broken)
    with pytest.raises(UsageError, match=r"scores\.json is not"):
        shown(run)


def test_another_name_is_not_taken_for_a_step(made: Callable[..., Path]) -> None:
    run = made()
    judged(run, 0.5, "-of-mine")
    assert "None yet" in shown(run)


def test_the_end_comes_after_its_own_step(made: Callable[..., Path]) -> None:
    run = made()
    judged(run, 0.5, f"-{folder.read(run).stage.steps}")
    judged(run, 0.75)
    assert "0.75" in shown(run) and "at its end" in shown(run)
