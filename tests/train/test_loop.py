"""The loop's cadence and its hand-over, with real ranks; its numbers are checked in tests/e2e/test_training.py."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import vectors

from bigdiff.checkpoint import layout, reader
from bigdiff.config.load import load_stage
from bigdiff.train import incidents, loop
from bigdiff.train.recovery import Curve
from bigdiff.train.run import Run

TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
print(train_stage(load_stage(sys.argv[1], sys.argv[2:])))
"""
Ranks = Callable[..., list[str]]
MakeRun = Callable[..., Run]


def test_logs_saves_and_keeps_as_configured_and_hands_over(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}"]
    cadence = ["steps=10", "checkpoint.every=3", "checkpoint.keep=2", "log.every=4", "name=first"]
    (output,) = run_ranks(TRAIN, 1, *arguments, *cadence)
    assert "from step 0" in output
    lines = [json.loads(line) for line in (tmp_path / "first" / layout.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert [line["samples_seen"] for line in lines] == [32, 64, 80]
    assert {"train/loss", "train/lr", "train/grad_norm", "speed/images_per_second"} <= lines[0].keys()
    assert [layout.step_of(folder) for folder in layout.saved(tmp_path / "first")] == [10, 9]
    # a second stage starts from the first one's EMA: with a rate of nothing it stays there
    second = ["name=second", "init_from=first", "steps=2", "optim.lr=1e-12", "optim.warmup_steps=0"]
    (output,) = run_ranks(TRAIN, 1, *arguments, *second)
    assert "weights from" in output
    before = reader.read_weights(layout.checkpoint(tmp_path / "first", 10), "ema")
    after = reader.read_weights(layout.checkpoint(tmp_path / "second", 2), "raw")
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9)


def test_a_finished_run_started_again_does_nothing(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "steps=4", "checkpoint.every=4"]
    run_ranks(TRAIN, 1, *arguments)
    before = (tmp_path / "toy" / layout.METRICS).read_bytes()
    (output,) = run_ranks(TRAIN, 1, *arguments)
    assert "finished=True" in output
    assert (tmp_path / "toy" / layout.METRICS).read_bytes() == before


def test_another_data_order_is_not_continued(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "steps=4", "checkpoint.every=4"]
    run_ranks(TRAIN, 1, *arguments)
    with pytest.raises(AssertionError, match=r"cannot be continued: seed is 3, the checkpoint was made with 0"):
        run_ranks(TRAIN, 1, *arguments, "seed=3", "steps=8")
    stage = load_stage(arguments[0], arguments[1:])
    assert layout.latest(layout.run_folder(stage.runs, stage.name)) == layout.checkpoint(tmp_path / "toy", 4)


def trained(run: Run, spoiled: dict[int, float]) -> tuple[list[torch.Tensor], list[str]]:
    """All that the whole run moved, and what it did in which order, of steps by number."""
    run.task.spoiled = spoiled  # type: ignore[attr-defined]
    told: list[str] = []
    names = ("forward_backward", "conclude", "update")
    with pytest.MonkeyPatch.context() as patch:
        for name, work in [(name, getattr(loop, name)) for name in names]:

            def noted(run: Run, *given: Any, name: str = name, work: Callable[..., Any] = work) -> Any:
                step = run.state.step if name == "conclude" else given[-1]
                told.append(f"{name} {step}")
                return work(run, *given)

            patch.setattr(loop, name, noted)
        assert loop.train(run).finished
    return vectors(run), told


def test_agreeing_a_step_later_changes_nothing(make_run: MakeRun) -> None:
    """Steps that are kept, left out and taken back: as when every step is looked at, bit for bit."""
    spoiled = {8 * 8 + 3: math.nan, 8 * 26 + 1: math.inf, 8 * 33 + 5: 1e5, 8 * 47: 1e5, 8 * 48: math.nan}
    settings = ["steps=53", "checkpoint.every=15", "recovery.window=20", "recovery.budget=0.5", "recovery.spike=6"]
    found = []
    for every in (1, 1000):
        run = make_run(*settings, f"log.every={every}", f"name=every-{every}")
        moved, told = trained(run, spoiled)
        lines = [json.loads(line) for line in (run.folder / incidents.FILE).read_text().splitlines()]
        happened = [{name: line[name] for name in line if name not in ("time", "start")} for line in lines]
        found.append((moved, run.state, run.curve, happened, told))
    (ours, *same, order), (theirs, *expected, plain) = found[1], found[0]
    assert same == expected
    assert all(map(torch.equal, ours, theirs))
    assert [(one["action"], one["window"]) for one in same[2]] == [
        ("skip", [8, 9]),
        ("skip", [26, 27]),
        ("roll back", [30, 34]),
        ("roll back", [45, 48]),
        ("skip", [48, 49]),
    ]
    # nobody waits between an update and the next step's passes; those of weights that went back are made again
    at = order.index("update 31")
    assert order[at : at + 8] == [
        "update 31",
        "forward_backward 32",
        "conclude 31",
        "update 32",
        "forward_backward 33",
        "conclude 32",
        "update 33",
        "forward_backward 34",
    ]
    assert order[at + 8 : at + 11] == ["conclude 33", "forward_backward 34", "update 34"]
    assert order[-3:] == ["conclude 51", "update 52", "conclude 52"]
    assert plain[:3] == ["forward_backward 0", "update 0", "conclude 0"]


def test_what_is_looked_at_is_agreed_on_before(make_run: MakeRun) -> None:
    """A log line, a checkpoint, a snapshot and the first save of a run that sees spikes find the run as it stands."""
    run = make_run("steps=50", "log.every=12", "checkpoint.every=45", "recovery.window=20", "ema.snapshot_every=0")
    assert [step for step in range(1, 51) if loop.looked_at(run, step)] == [12, 24, 36, 45, 48, 50]
    run.curve = Curve(losses=(0.0,) * 19, norms=(0.0,) * 19)
    assert loop.looked_at(run, 20)
    run.saved = True
    assert not loop.looked_at(run, 20)
