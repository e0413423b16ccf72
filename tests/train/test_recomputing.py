"""What engine.gradient_checkpointing=auto comes to, in the trainer and in the planner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Batch, Stage
from bigdiff.metrics import readings
from bigdiff.models.recomputing import Ledger, Unit
from bigdiff.runtime.devices import TABLE
from bigdiff.runtime.records import read
from bigdiff.runtime.world import World
from bigdiff.train import networks, recomputing, usage
from bigdiff.train.memory import RESERVED, USABLE, Ranks, Weights, room
from bigdiff.train.recomputing import Counted, choose, largest, limit, settle

AUTO = "engine.gradient_checkpointing=auto"
MB = 10**6
# SD's weights, and a network of three kinds of units: 900 MB an image, 500 of them to be had
UNITS = tuple(
    Unit(name=f"{side}_blocks.{at}.resnets.0", kept=kept * MB, flops=work * 10**9)
    for side, at, kept, work in (("down", 0, 200, 40), ("down", 1, 100, 30), ("up", 0, 100, 10), ("up", 1, 300, 90))
)
KNOWN = Counted(
    ledger=Ledger(units=UNITS, saved=880 * MB, peak=900 * MB), weights=Weights(sizes=(859_520_964,), frozen=123_060_480)
)
EVERY = [one.name for one in UNITS]


def on(gigabytes: float) -> Ranks:
    return Ranks(count=64, gpu=True, half=True, memory=1e9 * gigabytes)


def fitting(stage: Stage, per_image: float) -> Ranks:
    """Devices that have so many bytes for each image of the micro-batch."""
    beside = -room(stage, KNOWN.weights, on(0.0)) + 2 * max(KNOWN.weights.sizes)
    return on((stage.batch.micro * per_image + beside) / USABLE / 1e9)


def test_generous_memory_recomputes_nothing_tight_memory_some_and_too_little_all() -> None:
    stage = load_stage("512px", [AUTO, "batch.micro=32"])
    none, some, most, all_ = (choose(stage, fitting(stage, MB * size + 1), KNOWN) for size in (900, 800, 500, 499.9))
    assert (none.names, none.how, none.less, none.flops, none.fits) == ((), False, 0, 0, True)
    # 100 MB less: by the two of 100 MB of which one is there again, 40 GFLOP; not by 200 and 100, 50
    assert some.told == ("down_blocks.1", "up_blocks.0") and some.how == "down_blocks.1,up_blocks.0"
    assert (some.less, some.flops, some.peak, some.fits) == (100 * MB, 40 * 10**9, 800 * MB, True)
    # 400 MB less is all that can be had
    assert (most.names, most.how, most.peak, most.fits) == (tuple(EVERY), True, 500 * MB, True)
    assert (all_.names, all_.fits) == (tuple(EVERY), False)
    for one in (none, some, most):
        assert one.needed <= one.usable
    assert all_.needed > all_.usable
    assert some.usable == pytest.approx(USABLE * fitting(stage, MB * 800 + 1).memory - RESERVED)


def test_the_line_says_what_is_recomputed_what_it_saves_and_what_it_costs() -> None:
    stage = load_stage("512px", [AUTO, "batch.micro=32"])
    lines = [choose(stage, fitting(stage, MB * size + 1), KNOWN).line(10**12) for size in (900, 800, 400)]
    assert "auto recomputes nothing: a pass needs" in lines[0]
    some = (
        "auto recomputes down_blocks.1, up_blocks.0 (2 of 4), which saves 100.0 MB an image and costs 4.0% more FLOPs"
    )
    assert some in lines[1]
    assert "recomputes all units (4 of 4)" in lines[2] and "it may not fit: lower batch.micro" in lines[2]
    unknown = choose(stage, on(0.0), KNOWN)
    assert unknown.how is False and "nothing, as no limit of memory is known: engine.memory_gb" in unknown.line(1)
    assert not any("may not fit" in line for line in (*lines[:2], unknown.line(1)))


def test_the_largest_micro_batch_fits_with_all_recomputed_and_one_more_does_not() -> None:
    stage = load_stage("512px", [AUTO])
    found = largest(stage, on(80.0), KNOWN)
    micro = [replace(stage, batch=Batch(micro=size, total=64 * size)) for size in (found, found + 1)]
    assert [choose(one, on(80.0), KNOWN).fits for one in micro] == [True, False]
    assert largest(stage, on(5.0), KNOWN) == 0


def test_a_device_has_what_is_stated_or_what_the_table_says_and_never_more_than_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, stated = load_stage("512px", [AUTO]), load_stage("512px", [AUTO, "engine.memory_gb=60"])
    assert (limit(plain, torch.device("cpu")), limit(stated, torch.device("cpu"))) == (0.0, 60e9)
    own = type("Properties", (), {"total_memory": 85_028_000_000})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: own)
    for name, known in ((TABLE["h100"].called, 80e9), ("another", 85_028_000_000)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert limit(plain, torch.device("cuda", 0)) == known
        assert limit(stated, torch.device("cuda", 0)) == 60e9
    own.total_memory = 40_000_000_000
    assert limit(stated, torch.device("cuda", 0)) == 40e9


def tight(stage: Stage, share: float) -> float:
    """GB of which a rank on a CPU has room for this share of what the plain network takes."""
    known = recomputing.counted(stage, half=False)
    none = Ranks(count=1, gpu=False, half=False, memory=0.0)
    beside = -room(stage, known.weights, none) + 4 * max(known.weights.sizes)
    return (share * stage.batch.micro * known.ledger.peak + beside) / USABLE / 1e9


def test_without_auto_or_a_known_limit_nothing_is_switched(toy: Path, alone: World) -> None:
    found = networks.load(load_stage(str(toy / "stage.yaml")))
    assert settle(found.stage, found.module, alone) is None
    found = networks.load(load_stage(str(toy / "stage.yaml"), [AUTO]))
    chosen = settle(found.stage, found.module, alone)
    assert chosen is not None and chosen.names == () and "no limit of memory is known" in chosen.line(1)
    assert not found.denoiser.unet.is_gradient_checkpointing


SETTLE = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.runtime.world import enter, leave
from bigdiff.train import networks
from bigdiff.train.recomputing import settle
world = enter(60)
stage = load_stage(sys.argv[1], [*sys.argv[3:], f"engine.memory_gb={sys.argv[2].split(',')[world.rank]}"])
found = networks.load(stage)
chosen = settle(stage, found.module, world)
print(chosen.how, chosen.usable, found.denoiser.unet.is_gradient_checkpointing)
leave()
"""


def test_all_ranks_choose_by_the_smallest_memory(toy: Path, run_ranks: Callable[..., list[str]]) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [AUTO, "batch.total=4"])
    little = 0.9 * tight(stage, 0.3)
    said = [one.splitlines()[-1] for one in run_ranks(SETTLE, 2, str(toy / "stage.yaml"), f"90,{little}", AUTO)]
    assert said[0] == said[1] and said[0].endswith("True")
    assert float(said[0].split()[1]) == pytest.approx(max(USABLE * 1e9 * little - RESERVED, 1.0))


TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
train_stage(load_stage(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_run_with_auto_learns_the_same_says_its_choice_and_keeps_it(
    toy: Path, tmp_path: Path, run_ranks: Callable[..., list[str]], zero_stage: int
) -> None:
    base = [f"runs={tmp_path}", "steps=3", "log.every=1", "batch.total=2", "batch.micro=2", "checkpoint.every=3"]
    base += ["optim.warmup_steps=1", f"engine.zero_stage={zero_stage}"]
    memory = tight(load_stage(str(toy / "stage.yaml"), [*base, AUTO]), 0.7)
    losses, starts, told = [], [], []
    for name, more in (("plain", []), ("auto", [AUTO, f"engine.memory_gb={memory}"])):
        (said,) = run_ranks(TRAIN, 1, str(toy / "stage.yaml"), *base, f"name={name}", *more)
        told += [(name, line) for line in said.splitlines() if "gradient_checkpointing" in line]
        losses.append([one["train/loss"] for one in readings.lines(tmp_path / name / "metrics.jsonl")])
        starts += read(tmp_path / name / usage.RECORD, lambda one: usage.Start(**one), "starts")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[1]) == 3
    ((name, line),) = told
    assert name == "auto" and "MB an image and costs" in line and "may not fit" not in line
    assert starts[0].recomputed is False and starts[1].recomputed
    assert starts[0].flops == starts[1].flops, "speed/mfu counts nothing a second time"
