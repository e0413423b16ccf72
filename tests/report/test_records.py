from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.report.records import content


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert content(file) == {}
    file.write_text('{"a": 1}')
    assert content(file) == {"a": 1}
    for broken in ('{"a"', "[]", ""):
        file.write_text(broken)
        with pytest.raises(UsageError, match=r"a\.json is not"):
            content(file)
