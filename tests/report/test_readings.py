import json
import math
from pathlib import Path

import numpy as np
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.metrics.writer import Writer
from bigdiff.report.readings import columns_at_once, columns_by_line, read


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


def test_at_once_and_line_by_line_are_the_same_numbers(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    lines = []
    for step in range(1, 4001):
        line = {
            "step": step,
            "samples_seen": 8 * step,
            "a": float(chance.normal() * 10.0 ** chance.integers(-300, 300)),
        }
        line |= {
            "odd": (math.nan, math.inf, -math.inf, 1e-3)[step % 4],
            "mixed": 0 if step % 3 else 0.1,
            "time": 1.7e9 + step / 7,
        }
        line |= {"rare": 1 / step} if step % 1000 == 0 else {}
        lines.append(line)
    chunk = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    quick, plain = columns_at_once(chunk), columns_by_line(chunk, tmp_path, 0)
    assert quick is not None and quick.keys() == plain.keys() == {"a", "odd", "mixed", "rare"}
    for tag, both in plain.items():
        for one, other in zip(quick[tag], both, strict=True):
            assert np.array_equal(one, other, equal_nan=True), tag
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(chunk * 3)  # long enough to be read at once
    whole = read(file)
    assert (whole.count, whole.curve("a").count, whole.curve("rare").count) == (12_000, 12_000, 12)
    assert (repr(whole.first), repr(whole.last)) == (repr(lines[0]), repr(lines[-1]))  # not a number equals nothing
    file.write_bytes(chunk * 3 + b'{"samples_seen": 1, "a": NaN}\n{"samples_seen": 1, "a": 1')
    odd = read(file)
    assert (odd.count, odd.curve("a").broken, odd.curve("a").count) == (12_001, 1, 12_000)
    file.write_bytes(chunk * 3 + b'{"samples_seen": 1, "a": "x"}\n')
    with pytest.raises(UsageError, match="line 12001 has a a that is no number"):
        read(file)


@pytest.mark.parametrize(
    "line",
    [
        b'{"samples_seen": 1, "a": null}',
        b'{"samples_seen": 1, "a": "x"}',
        b'{"samples_seen": 1, "a": true}',
        b'{"samples_seen": 1, "a": {}}',
        b'{"samples_seen": 1, "a": ' + b"[" * 100_000,
        b'{"samples_seen": 1, "a": 1, "a": 2}',
        '{"samples_seen": 1, "\u00e4": 1}'.encode(),
        b'{"a": 1}',
        b'{"samples_seen": 1}{"samples_seen": 2}',
        b"",
        b"[1]",
        b"{",
    ],
)
def test_what_is_not_plain_is_left_to_json(line: bytes) -> None:
    plain = b'{"samples_seen": 1, "a": 2.0}\n'
    assert columns_at_once(plain * 3) is not None
    assert columns_at_once(plain + line + b"\n" + plain) is None
