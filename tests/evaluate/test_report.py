import json
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import report
from bigdiff.evaluate.point import Point

POINTS = [
    Point(guidance=1.5, images=30_000, fid=21.234567, clip_score=0.61, clip_cosine=0.24),
    Point(guidance=5.0, images=30_000, fid=14.0, clip_score=0.77, clip_cosine=0.31),
]


def wanted(output: Path) -> Evaluation:
    return Evaluation(output=output, judges=Judges(clip="c"), pipeline=Path("model"))


def test_the_table_has_the_columns_that_were_computed() -> None:
    lines = report.table(POINTS)
    assert lines[0] == "| guidance | images | fid | clip_score | clip_cosine |"
    assert lines[2] == "| 1.5 | 30,000 | 21.235 | 0.61 | 0.24 |"
    mixed = report.table([*POINTS, Point(guidance=None, images=3, cmmd=0.5)])
    assert mixed[0].endswith("| cmmd |") and mixed[4] == "| - | 3 | - | - | - | 0.5 |"


def test_the_folder_says_what_is_in_it(tmp_path: Path) -> None:
    report.write(wanted(tmp_path), POINTS, {"made_of": {"networks": {"inception": "xyz"}}})
    content = json.loads((tmp_path / report.RESULTS).read_bytes())
    assert content["made_of"] == {"networks": {"inception": "xyz"}}
    assert [point["fid"] for point in content["points"]] == [21.234567, 14.0]
    assert content["means"].keys() == {"fid", "clip_score", "clip_cosine"}
    page = (tmp_path / "README.md").read_text()
    assert "# Evaluation of model" in page and "| 5 | 30,000 | 14 |" in page and '"xyz"' in page
    assert "far too high" not in page
    with Image.open(tmp_path / report.CURVE) as picture:
        assert json.loads(picture.text["settings"])["points"] == [[1.5, 0.61, 21.234567], [5.0, 0.77, 14.0]]


def test_one_point_is_no_curve_and_a_singular_one_is_said(tmp_path: Path) -> None:
    report.write(wanted(tmp_path), [Point(guidance=3.0, images=9, fid=300.0, clip_score=0.5, singular=True)], {})
    assert not (tmp_path / report.CURVE).exists()
    assert "no more pictures than features: far too high" in (tmp_path / "README.md").read_text()


def test_no_board_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    report.board(wanted(tmp_path / "out"), POINTS[0])
    assert not list(tmp_path.iterdir())


def test_the_curve_is_on_the_board_once_for_the_same_points(tmp_path: Path) -> None:
    asked = replace(wanted(tmp_path / "out"), tensorboard=tmp_path / "board", samples_seen=640)
    for points in (POINTS, POINTS, POINTS[:1], POINTS):
        report.write(asked, points, {})
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    first, again = board.Images("eval/fid_clip")  # of both points, of which there was one between
    assert (first.step, again.step) == (640, 640) and first.encoded_image_string == again.encoded_image_string
