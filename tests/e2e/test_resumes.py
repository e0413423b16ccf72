"""A run that was killed goes on as if nothing had happened: bit for bit on as many ranks, to 1e-5 on others."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from bigdiff.checkpoint import layout, reader

if TYPE_CHECKING:
    from conftest import Ranks

Start = Callable[..., "Ranks"]
STEPS = 8
ONE, TWO, OURS = "engine.zero_stage=1", "engine.zero_stage=2", "engine={sharding: overlapped, bucket_elements: 20000}"
COPIES = "engine={sharding: overlapped, shard_ranks: 1, bucket_elements: 20000}"
VECTORS = ("raw", "ema", "exp_avg", "exp_avg_sq")
# SIGKILL of every rank right after step {step}, with the save of step {step} just begun behind its back or committed
DIE = """
import os, signal
from bigdiff.train import loop
save = loop.save
def save_and_die(run):
    save(run)
    if run.state.step == {step}:
        if {committed}:
            run.checkpoints.wait(run.world)
            run.world.barrier()  # a rank that dies first would end the other one in its wait
        os.kill(os.getpid(), signal.SIGKILL)
loop.save = save_and_die
"""


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["train/loss"] for line in lines]


def held(run: Path, which: str) -> torch.Tensor:
    weights = reader.read_weights(layout.checkpoint(run, STEPS), which)
    return torch.cat([one.flatten() for one in weights.values()])


def ended(ranks: "Ranks") -> str:
    assert ranks.wait()[0].splitlines()[-1] == f"finished {STEPS}"
    return ranks.texts()[0]


@pytest.mark.parametrize("way", [ONE, TWO, OURS, COPIES])
def test_eight_steps_are_four_a_kill_and_four(start: Start, tmp_path: Path, way: str) -> None:
    """Saves are asynchronous, at every second step; once the save of step 4 is committed, once it has just begun."""
    arguments = (f"steps={STEPS}", "checkpoint.every=2", way)
    ended(start(2, *arguments, "name=whole"))
    for name, committed in (("saved", True), ("saving", False)):
        died = start(2, *arguments, f"name={name}", before=DIE.format(step=4, committed=committed))
        assert died.ended() and died.codes() == [-signal.SIGKILL] * 2, died.texts()
        text = ended(start(2, *arguments, f"name={name}"))
        assert "from step 4" in text if committed else ("from step 4" in text or "from step 2" in text)
        assert losses(tmp_path / name) == losses(tmp_path / "whole")
        for which in VECTORS:
            assert torch.equal(held(tmp_path / name, which), held(tmp_path / "whole", which)), which


@pytest.mark.parametrize(
    ("way", "ways"),
    [(ONE, (ONE, ONE, ONE)), (TWO, (TWO, TWO, TWO)), (OURS, (OURS, OURS, OURS)), (ONE, (OURS, TWO, COPIES))],
)
def test_two_ranks_then_one_then_three_train_what_two_do(
    start: Start, tmp_path: Path, way: str, ways: tuple[str, str, str]
) -> None:
    # a large eps keeps Adam from dividing tiny gradients by their own size, which magnifies rounding a hundredfold
    common = (f"steps={STEPS}", "checkpoint.every=3", "batch.total=12", "batch.micro=2", "optim.eps=1e-4")
    common += ("log.price_per_device_hour=1e6",)  # large enough for seconds
    ended(start(2, *common, way, "name=whole"))
    for size, step, other in ((2, 3, ways[0]), (1, 6, ways[1])):
        died = start(size, *common, other, "name=resized", before=DIE.format(step=step, committed=True))
        assert died.ended() and died.codes() == [-signal.SIGKILL] * size, died.texts()
    assert "from step 6" in ended(start(3, *common, ways[2], "name=resized"))
    assert losses(tmp_path / "resized") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    for which in VECTORS:
        ours, whole = held(tmp_path / "resized", which), held(tmp_path / "whole", which)
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
        assert bool(whole.any())
    counted(tmp_path / "resized")


def counted(run: Path) -> None:
    """Every start of it is known, and its money never falls."""
    lines = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    assert [line["speed/restarts"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2]
    money = [line["cost/so_far"] for line in lines]
    assert money[0] > 0 and money == sorted(money)
    starts = json.loads((run / "usage.json").read_text())
    assert [one["devices"] for one in starts] == [2, 1, 3]
    spent = [one["devices"] * one["seconds"] for one in starts]
    last = 3 * (lines[-1]["time"] - starts[-1]["time"])
    assert money[-1] == pytest.approx(1e6 * (sum(spent) + last) / 3600, rel=0.1)
    assert starts[0]["flops"] == starts[2]["flops"] > 0
    assert all(line["speed/tflops_per_device"] > 0 and "speed/mfu" not in line for line in lines)
