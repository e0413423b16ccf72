from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.report import folder, preflight
from bigdiff.report.folder import Folder
from bigdiff.runtime.files import write_json
from bigdiff.runtime.peers import Fault, Reading
from bigdiff.train import preflight as before
from bigdiff.train.preflight import Found


def reading(rank: int, **values: float) -> Reading:
    return Reading(rank=rank, host=f"n{rank}", device="cpu", copy=2e10, product=1.0, matmul=1e12 * (rank + 1), **values)


def record(run: Path, *faults: Fault) -> None:
    """As bigdiff.train.preflight writes it."""
    found = Found(readings=(reading(0), reading(1), reading(2)), all_reduce=1.5e8, sums=True, seconds=1.4)
    write_json(
        run / "logs" / before.RECORD, {"time": 1.7e9, "faults": [asdict(one) for one in faults], **asdict(found)}
    )


def test_the_spread_of_all_processes_is_told(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    assert preflight.RECORD == before.RECORD
    run = made()
    record(run)
    texts = parsed(preflight.written(folder.read(run))).texts
    at = texts.index("matrix product, TFLOP/s")
    assert texts[at + 1 : at + 5] == ["1", "2", "3", "n0"]
    assert "exchange with another process, GB/s" not in texts, "nobody measured it"
    assert any(text.startswith("3 processes on 3 nodes (cpu)") and "All-reduce 0.15 GB/s" in text for text in texts)
    assert any("No node was at fault." in text for text in texts)


def test_faults_are_named(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made()
    record(run, Fault(host="n2", why="<b>half as fast", slow=True), Fault(host="n1", why="dead", slow=False))
    texts = parsed(preflight.written(folder.read(run))).texts
    at = texts.index("n2")
    assert texts[at : at + 6] == ["n2", "<b>half as fast", "slow", "n1", "dead", "broken"]


def test_without_a_record_or_with_a_damaged_one_it_is_said(
    made: Callable[..., Path], told: Callable[..., Folder]
) -> None:
    assert "There is no record" in preflight.written(told())
    run = made()
    for broken in ({"readings": []}, {"readings": 5, "time": 1}):
        write_json(run / "logs" / before.RECORD, broken)
        with pytest.raises(UsageError, match=r"preflight\.json is not a preflight's record"):
            preflight.written(folder.read(run))
