"""How long a save holds up the training, and what the writing behind it costs, beside DeepSpeed's own save, by turns.

One process, one engine, the same weights, moments and average: ours returns when a host copy is made and writes while
the next steps run; DeepSpeed's `save_checkpoint` (which has no average) returns when its file is written, and then
brought to the disk as ours is.
"""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from steps import optimizer_step

from bigdiff.checkpoint import layout
from bigdiff.config.load import load_stage
from bigdiff.runtime.files import sync
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter, leave
from bigdiff.train import loop
from bigdiff.train.run import Run
from bigdiff.train.setup import building

RESULTS = Path(__file__).parent / "results"
ROUNDS, STEPS = 7, 24  # the steps after a save take longer than its writing
NEVER = 10**6
SIZES = [
    "model.unet.block_out_channels=[256,512]",
    "model.unet.norm_num_groups=32",
    "model.unet.attention_head_dim=8",
    "batch.total=8",
    "batch.micro=8",
]


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def train(run: Run) -> None:
    """STEPS steps of the loop's network, without log or save."""
    for _ in range(STEPS):
        optimizer_step(run, next(run.batches))


def theirs(run: Run, folder: Path) -> None:
    run.engine._engine.save_checkpoint(str(folder), tag="step")
    for file in sorted((folder / "step").iterdir()):
        sync(file)


@pytest.mark.bench
def test_stall_of_a_save(toy: Path, tmp_path: Path) -> None:
    arguments = [f"runs={tmp_path}", *SIZES, f"steps={NEVER}", f"checkpoint.every={NEVER}", f"log.every={NEVER}"]
    stage = load_stage(str(toy / "stage.yaml"), [*arguments, "checkpoint.keep=1"])
    torch.set_num_threads(1)
    world = enter(600)
    measured: dict[str, list[float]] = {name: [] for name in ("calm", "save", "beside", "written", "deepspeed")}
    try:
        with building(stage, world, Stop(), Watchdog(world, tmp_path, 600)) as run:
            run.say = lambda line: None
            train(run)
            for _ in range(ROUNDS):
                measured["calm"].append(timed(lambda: train(run)))
                run.state = run.state.after(stage.batch.total)
                began = time.perf_counter()
                measured["save"].append(timed(lambda: loop.save(run)))
                measured["beside"].append(timed(lambda: train(run)))
                run.checkpoints.wait(world)
                assert run.checkpoints.stall_seconds() == pytest.approx(measured["save"][-1], abs=0.05)
                measured["written"].append(time.perf_counter() - began)
                measured["deepspeed"].append(timed(lambda: theirs(run, tmp_path / "deepspeed")))
                shutil.rmtree(tmp_path / "deepspeed")
            newest = layout.latest(tmp_path / "toy")
            assert newest is not None
            size = sum(file.stat().st_size for file in newest.iterdir())
            report(run.engine.partition.total, size, measured)
    finally:
        leave()


def report(parameters: int, size: int, measured: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(values) for name, values in measured.items()}
    slower = [beside - calm for beside, calm in zip(measured["beside"], measured["calm"], strict=True)]
    ratios = [other / ours for other, ours in zip(measured["deepspeed"], measured["save"], strict=True)]
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"{today}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread of "
        f"{os.cpu_count()} cores, one process, fp32, ZeRO-1, {parameters:,} parameters, {size / 1e6:.0f} MB a "
        f"checkpoint (masters, two moments, one average); medians of {ROUNDS} rounds by turns",
        f"stall of a save: {1e3 * middle['save']:.0f} ms; DeepSpeed's save_checkpoint and fsync: "
        f"{middle['deepspeed']:.2f} s, {statistics.median(ratios):.1f} times as long, without the average",
        f"the {STEPS} steps while it is written take {1e3 * statistics.median(slower):+.0f} ms more than "
        f"{middle['calm']:.2f} s without ({statistics.median(slower) / middle['calm']:+.1%})",
        f"stall as a share of a day with a save every 10 minutes: {middle['save'] / 600:.4%}",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-checkpoint.txt").write_text("\n".join(lines) + "\n")
