from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.report.records import content, lines


def test_a_line_that_is_being_written_is_no_line_yet(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for written, held in (('{"a": 1}\n{"a": 2}\n', 2), ('{"a": 1}\n{"a": 2}', 1), ('{"a": 1}\n{"a', 1), ("", 0)):
        file.write_text(written)
        assert [line["a"] for line in lines(file)] == list(range(1, held + 1))
    assert list(lines(tmp_path / "absent")) == []


@pytest.mark.parametrize("broken", [b"{\n", b"\n", b"[1]\n", b"\xff\xfe\n", b"\0\0\0\n"])
def test_a_damaged_line_is_named(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + broken + b'{"a": 2}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl line 2 is not .*: delete the line"):
        list(lines(file))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert content(file) == {}
    file.write_text('{"a": 1}')
    assert content(file) == {"a": 1}
    for broken in ('{"a"', "[]", ""):
        file.write_text(broken)
        with pytest.raises(UsageError, match=r"a\.json is not"):
            content(file)
