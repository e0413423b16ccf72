import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.plan.room import check, checkpoint_bytes, most_bytes, used

PARAMETERS = 1_000_000
ONE = 4 * PARAMETERS * 4  # masters, two moments, one average
Usage = namedtuple("Usage", ("total", "used", "free"))


def stage(*settings: str) -> Stage:
    return load_stage(
        "256px", ["steps=1000", "optim.warmup_steps=9", "checkpoint.every=100", "checkpoint.keep=3", *settings]
    )


def test_a_checkpoint_is_masters_moments_and_averages() -> None:
    assert checkpoint_bytes(stage(), PARAMETERS) == ONE
    assert checkpoint_bytes(stage("ema.decays=[]"), PARAMETERS) == ONE - 4 * PARAMETERS
    assert checkpoint_bytes(stage("ema.decays=[0.9,0.5]"), PARAMETERS) == ONE + 4 * PARAMETERS


@pytest.mark.parametrize(
    ("settings", "checkpoints"),
    [
        ((), 4),  # three, and the one being written
        (("steps=150",), 2),  # no more than there are
        (("checkpoint.keep_every=500",), 6),
        (("checkpoint.keep_every=500", "checkpoint.keep_best=true"), 7),
        (("checkpoint.keep_every=100",), 10),
    ],
)
def test_so_many_lie_there_at_once(settings: tuple[str, ...], checkpoints: int) -> None:
    assert most_bytes(stage(*settings), PARAMETERS) == checkpoints * ONE


def test_snapshots_of_averages_stay() -> None:
    found = stage("ema.decays=[]", "ema.power=[0.05,0.1]", "ema.snapshot_every=250")
    assert most_bytes(found, PARAMETERS) == 4 * checkpoint_bytes(found, PARAMETERS) + 4 * 2 * 4 * PARAMETERS


def test_stages_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"bytes": 0}
    asked: list[Path] = []

    def usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(total=0, used=0, free=free["bytes"])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    runs = f"runs={tmp_path}/not/yet/there"
    two = [stage(runs, "name=a"), stage(runs, "name=b")]
    counts = {"a": PARAMETERS, "b": 2 * PARAMETERS}
    free["bytes"] = 12 * ONE
    check(two, counts)
    assert set(asked) == {tmp_path}
    free["bytes"] -= 1
    with pytest.raises(UsageError, match=r"the checkpoints of a, b need 0\.2 GB more"):
        check(two, counts)
    # what is there already needs no more space
    file = layout.checkpoint(Path(two[0].runs) / "a", 100) / "rank"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"0")
    assert used(Path(two[0].runs) / "a") == 1
    check(two, counts)
