import json
from pathlib import Path

from bigdiff.metrics import readings


def test_the_last_line_is_the_last_whole_one_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert readings.last(file) == {}
    file.write_text('{"step": 1, "spe')
    assert readings.last(file) == {}
    lines = [json.dumps({"step": step, "speed/images_per_second": 5.0}) for step in range(10_000)]
    file.write_text("\n".join(lines) + '\n{"step": 10000, "spe')
    assert readings.last(file) == {"step": 9999, "speed/images_per_second": 5.0}


def test_every_line_is_read_but_the_one_that_is_being_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert readings.every(file) == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "sp')
    assert readings.every(file) == [{"step": 1}, {"step": 2}]
