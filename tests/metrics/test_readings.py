import json
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.metrics import readings


def test_the_last_line_is_the_last_whole_one_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert readings.last(file) == {}
    file.write_text('{"step": 1, "spe')
    assert readings.last(file) == {}
    lines = [json.dumps({"step": step, "speed/images_per_second": 5.0}) for step in range(10_000)]
    file.write_text("\n".join(lines) + '\n{"step": 10000, "spe')
    assert readings.last(file) == {"step": 9999, "speed/images_per_second": 5.0}


def test_a_line_that_is_being_written_is_no_line_yet(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for written, held in (('{"a": 1}\n{"a": 2}\n', 2), ('{"a": 1}\n{"a": 2}', 1), ('{"a": 1}\n{"a', 1), ("", 0)):
        file.write_text(written)
        assert [line["a"] for line in readings.lines(file)] == list(range(1, held + 1))
    assert list(readings.lines(tmp_path / "absent")) == []


@pytest.mark.parametrize("broken", [b"{\n", b"\n", b"[1]\n", b"\xff\xfe\n", b"\0\0\0\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + broken + b'{"a": 2}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl line 2 is not .*: delete the line"):
        list(readings.lines(file))
