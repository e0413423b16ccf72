import json
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.metrics.writer import Writer
from bigdiff.report.readings import read


def test_what_a_run_writes_is_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = Writer(tmp_path / "board", file, 0)
    for step in (1, 2, 3):
        values = {"train/loss": 1 / step, "train/samples_seen": 8.0 * step}
        writer.scalars(step, 8 * step, values | ({"validation/loss": 0.5} if step == 2 else {}))
    writer.close()
    found = read(file)
    assert found.curve("train/loss").points == ((8, 1.0), (16, 0.5), (24, 1 / 3))
    assert found.curve("validation/loss").points == ((16, 0.5),)
    assert found.curve("absent").points == ()
    assert set(found.curves) == {"train/loss", "validation/loss"}
    assert (found.count, found.first["step"], found.last["step"]) == (3, 1, 3)


def test_a_run_that_has_just_begun_has_no_readings(tmp_path: Path) -> None:
    found = read(tmp_path / "metrics.jsonl")
    assert (found.count, found.first, found.last, found.curves) == (0, {}, {}, {})


def test_tags_of_ranges_stand_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    names = {f"train/loss_t/{bin_}": 1.0 for bin_ in (10, 2, 0, 1)}
    file.write_text(json.dumps({"samples_seen": 1, **names}) + "\n")
    assert [tag.rpartition("/")[2] for tag in read(file).under("train/loss_t/")] == ["0", "1", "2", "10"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"train/loss": 1}', "line 2 has no number samples_seen"),
        ('{"samples_seen": "1"}', "line 2 has no number samples_seen"),
        ('{"samples_seen": 1, "a": "x"}', "line 2 has a a that is no number"),
        ('{"samples_seen": 1', "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_reading_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"samples_seen": 1}}\n{line}\n{{"samples_seen": 2}}\n')
    with pytest.raises(UsageError, match=said):
        read(file)
