"""The loop's cadence and its hand-over, with real ranks; its numbers are checked in tests/e2e/test_training.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigdiff.checkpoint import layout, reader
from bigdiff.config.load import load_stage

TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
print(train_stage(load_stage(sys.argv[1], sys.argv[2:])))
"""
Ranks = Callable[..., list[str]]


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
