import json
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.plan.probe import Probe, read, write


def test_what_was_written_is_read(tmp_path: Path, probed: Probe) -> None:
    write(probed, tmp_path / "probe.json")
    assert read(tmp_path / "probe.json") == probed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "not a measurement of this version"),
        (json.dumps({"format": 1}), "not a measurement of this version"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "probe.json")


def test_a_wrong_value_and_no_file_are_refused(tmp_path: Path, probed: Probe) -> None:
    write(probed, tmp_path / "probe.json")
    content = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps(content | {"image": "fast"}))
    with pytest.raises(UsageError, match="image='fast'"):
        read(tmp_path / "probe.json")
    with pytest.raises(UsageError, match=r"launch/probe\.py"):
        read(tmp_path / "none.json")
