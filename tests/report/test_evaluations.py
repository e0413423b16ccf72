import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import judging, report
from bigdiff.evaluate.point import Point
from bigdiff.export import measured
from bigdiff.report import evaluations, folder

POINTS = [
    Point(guidance=1.5, images=30_000, fid=21.234567, clip_score=0.61, clip_cosine=0.24),
    Point(guidance=5.0, images=30_000, fid=14.0, clip_score=0.77, clip_cosine=0.31, singular=True),
]


def shown(run: Path) -> str:
    return "".join(evaluations.written(folder.read(run)))


def evaluated(output: Path, seen: int | None, prompts: str = "a", points: list[Point] = POINTS) -> None:
    """As launch/evaluate.py leaves it."""
    wanted = Evaluation(output=output, judges=Judges(clip="c"), pipeline=Path("model"))
    about = {"made_of": {"prompts": prompts, "pictures": str(output)}, "real": None}
    report.write(wanted, points, {**about, "settings": {"samples_seen": seen, "weights": "ema"}})


def test_the_files_are_those_that_are_written() -> None:
    written = (report.RESULTS, judging.RESULT, report.CURVE, measured.ORIGIN)
    assert written == (evaluations.RESULTS, evaluations.RESULT, evaluations.CURVE, evaluations.ORIGIN)


def test_an_evaluation_is_told_as_it_was_left(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made()
    assert shown(run) == ""
    evaluated(run / "evaluation", 41_600)
    reader = parsed(shown(run))
    assert "Judged in evaluation, after 41,600 images" in reader.texts
    at = reader.texts.index("clip_cosine")
    first, second = ["1.5", "30,000", "21.235", "0.61", "0.24"], ["5", "30,000", "14", "0.77", "0.31"]
    assert reader.texts[at + 1 : at + 11] == [*first, *second]
    assert any(text.startswith("fid: Frechet distance") for text in reader.texts)
    assert any("far too high" in text for text in reader.texts)
    assert len(reader.sources) == 1, "FID against CLIP-SCORE"
    assert "svg" not in reader.tags, "one evaluation is no curve"


def test_checkpoints_that_were_judged_alike_make_curves(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    for step in (5, 10, 20, 100):
        better = [replace(point, fid=1000 / step) for point in POINTS]
        evaluated(run / "evaluation" / str(step), step * 64, points=better)
    evaluated(run / "evaluation" / "40", 40 * 64, prompts="others")
    html = shown(run)
    texts = parsed(html).texts
    assert [text for text in texts if text.startswith("Judged in")] == [
        "Judged in evaluation/100, after 6,400 images",
        "Judged in evaluation/40, after 2,560 images",
        "Judged in evaluation/20, after 1,280 images",
    ]
    assert "The newest 3 of 5 evaluations are shown in full." in texts
    assert "1 others were judged in other ways, or are not done, and are left out of these curves." in texts
    assert [part.partition('"')[0] for part in html.split('aria-label="')[1:]] == ["FID", "CLIP-SCORE"]
    lines = [part.partition('"')[0].split() for part in html.split('points="')[1:]]
    assert [len(line) for line in lines] == [4, 4, 4, 4], "of each guidance, the four that compare"


def test_one_that_is_under_way_shows_what_there_is(made: Callable[..., Path]) -> None:
    run = made()
    done = run / "evaluation" / "100" / "guidance-5"
    done.mkdir(parents=True)
    (done / judging.RESULT).write_text(json.dumps({"point": asdict(POINTS[1]), "real": None}))
    (done.parent / measured.ORIGIN).write_text('{"samples_seen": 6400}')
    assert "Judged in evaluation/100, after 6,400 images, not finished" in shown(run) and "30,000" in shown(run)


def test_a_damaged_one_is_named(made: Callable[..., Path]) -> None:
    run = made()
    (run / "evaluation").mkdir()
    for broken in ('{"points": [{"fid": 1}]}', '{"points": 3}', '{"a": 1}'):
        (run / "evaluation" / report.RESULTS).write_text(broken)
        with pytest.raises(UsageError, match=r"results\.json is not what launch/evaluate\.py writes"):
            shown(run)
