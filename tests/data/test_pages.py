import json
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data import ledger, pages
from bigdiff.data.damage import Consumed
from bigdiff.data.ledger import Header, Ledger
from bigdiff.data.pages import Skip

HEADER = Header(
    start="00000000000000000001-aa",
    step=0,
    rank=0,
    size=1,
    fingerprint="cd" * 32,
    total=8,
    seed=1,
    window=4,
    lanes=2,
    kind="latents",
    inputs=(),
)


def framed(body: bytes) -> bytes:
    rest = len(body).to_bytes(4, "little") + body
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def written(run: Path) -> Path:
    """Six steps: 2 moved no weights, and at 4 the run went back to 1."""
    opened = Ledger(run, HEADER)
    for step in range(6):
        opened.write(step, [Consumed(position=8 * step, samples=8, digest=step, substituted=())])
        if step == 2:
            opened.skip(2, 3, "non-finite loss")
        if step == 4:
            opened.skip(1, 5, "loss spike: üb" + "x" * 300)
    opened.close()
    return opened.file


def test_windows_are_read_among_the_steps(tmp_path: Path) -> None:
    found = pages.read(written(tmp_path))
    assert found is not None
    assert (found.ending, found.steps.tolist()) == ("whole", list(range(6)))
    first, second = found.skips
    assert first == Skip(begin=2, end=3, reason="non-finite loss")
    assert (second.begin, second.end) == (1, 5)
    assert second.reason.startswith("loss spike: üb") and len(second.reason.encode()) == 200


def test_a_cut_inside_a_window_loses_it_alone(tmp_path: Path) -> None:
    file = written(tmp_path)
    content = file.read_bytes()
    end = content.index(b"non-finite loss") + len(b"non-finite loss")
    for missing in range(1, 8 + 17 + 15):
        file.write_bytes(content[: end - missing])
        found = pages.read(file)
        assert found is not None
        assert (found.ending, found.steps.tolist(), found.skips) == ("torn", [0, 1, 2], ())


def test_ledgers_of_before_there_were_windows_are_read(tmp_path: Path) -> None:
    file = written(tmp_path)
    content = file.read_bytes()
    header = framed(b"H" + json.dumps({"format": ledger.FORMAT, **asdict(HEADER)}, sort_keys=True).encode())
    assert content.startswith(header)
    older = framed(b"H" + json.dumps({"format": 1, **asdict(HEADER)}, sort_keys=True).encode())
    file.write_bytes(older + content[len(header) :])
    found = pages.read(file)
    assert found is not None
    assert found.header == HEADER
    assert found.end == 6


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rank-00000-of-00001.ledger"
    with pytest.raises(UsageError, match="cannot read"):
        pages.read(file)
    file.write_bytes(b"a text that somebody put here")
    with pytest.raises(UsageError, match="is no ledger"):
        pages.read(file)
    file.write_bytes(framed(b'H{"format": 9}'))
    with pytest.raises(UsageError, match="another format than 2"):
        pages.read(file)
    file.write_bytes(b"")
    assert pages.read(file) is None
