"""Records that a run keeps."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bigdiff.config.errors import RunError
from bigdiff.runtime.records import read, write


@dataclass(frozen=True, kw_only=True, slots=True)
class One:
    number: int
    word: str = ""


def test_what_is_written_is_read_and_no_file_is_none(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "ones.json"
    assert read(file, lambda one: One(**one), "ones") == []
    every = [One(number=2, word="ü"), One(number=1)]
    write(file, every)
    assert read(file, lambda one: One(**one), "ones") == every
    write(file, every[:1])
    assert read(file, lambda one: One(**one), "ones") == every[:1]
    assert [path.name for path in file.parent.iterdir()] == ["ones.json"]


@pytest.mark.parametrize("content", ["{", "[1]", "4", '[{"word": "a"}]', '[{"number": 1, "other": 2}]', "[null]"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ones.json"
    file.write_text(content)
    with pytest.raises(RunError, match=r"ones\.json is not a list of ones \(.*\): remove it"):
        read(file, lambda one: One(**one), "ones")
