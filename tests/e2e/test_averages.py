"""A run's averages through a real training: tracked, stored, resumed on other ranks, drawn, reconstructed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.checkpoint import layout, reader, snapshots
from bigdiff.config.load import load_stage
from bigdiff.export import diffusers
from bigdiff.models.ema import profiles

TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
print(train_stage(load_stage(sys.argv[1], sys.argv[2:])))
"""
STEPS = 12
EMA = "ema={decays: [0.5, 0.99], power: [0.05, 0.2], snapshot_every: 2}"
DRAWN = "preview={every: 6, prompts: [a red thing], steps: 2, weights: ema/0.99}"
NAMES = ("master", "exp_avg", "exp_avg_sq", "ema/0.5", "ema/0.99", "power/0.05", "power/0.2")
Ranks = Callable[..., list[str]]


@pytest.fixture(scope="module")
def runs(run_ranks: Ranks, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, and the same run gone on from its middle: as before, and on two ranks."""
    folder = tmp_path_factory.mktemp("averages")

    def train(name: str, size: int, *more: str) -> None:
        arguments = [f"runs={folder}", f"name={name}", f"steps={STEPS}", "checkpoint.every=6", EMA, *more]
        run_ranks(TRAIN, size, str(toy / "stage.yaml"), *arguments)

    train("whole", 1, DRAWN)
    for name, size in (("resumed", 1), ("resized", 2)):
        shutil.copytree(folder / "whole", folder / name)
        shutil.rmtree(layout.checkpoint(folder / name, STEPS))  # what lies beyond its middle is of a past given up
        (layout.snapshot(folder / name, STEPS) / layout.INDEX).write_text("no index")
        train(name, size)
    return folder


def held(run: Path, name: str) -> torch.Tensor:
    weights = reader.read_weights(layout.checkpoint(run, STEPS), name)
    return torch.cat([one.flatten() for one in weights.values()])


def test_a_resume_goes_on_bit_for_bit_and_other_ranks_to_1e_5(runs: Path) -> None:
    for name in NAMES:
        assert torch.equal(held(runs / "whole", name), held(runs / "resumed", name))
        torch.testing.assert_close(held(runs / "whole", name), held(runs / "resized", name), rtol=0, atol=1e-5)
    assert len({held(runs / "whole", name).sum().item() for name in NAMES}) == len(NAMES)  # no two are the same


def test_snapshots_are_the_same_bytes_after_a_resume(runs: Path) -> None:
    whole, resumed = (layout.steps(layout.snapshots(runs / name)) for name in ("whole", "resumed"))
    assert [layout.step_of(folder) for folder in whole] == [2, 4, 6, 8, 10, 12]
    for one, other in zip(whole, resumed, strict=True):
        shard = layout.shard(0, 1)
        assert (one / shard).read_bytes() == (other / shard).read_bytes()
    sizes = {
        layout.step_of(f): len(reader.read_index(f).files) for f in layout.steps(layout.snapshots(runs / "resized"))
    }
    assert sizes == {2: 1, 4: 1, 6: 1, 8: 2, 10: 2, 12: 2}


def test_a_width_is_reconstructed_from_a_run_and_exported(runs: Path, tmp_path: Path) -> None:
    made = {name: snapshots.asked(runs / name, layout.checkpoint(runs / name, STEPS), "sigma=0.1") for name in
            ("whole", "resumed", "resized")}  # fmt: skip
    for name, weight in made["whole"].named().items():
        assert torch.equal(made["resumed"].named()[name], weight)
        torch.testing.assert_close(made["resized"].named()[name], weight, rtol=0, atol=1e-5)
    source = diffusers.export(runs / "whole", tmp_path / "out", "sigma=0.1")
    assert source.which.startswith("power-function average of relative width 0.1, reconstructed from 6 stored times")
    assert source.which in (tmp_path / "out" / "README.md").read_text()
    for name, weight in made["whole"].named().items():
        assert torch.equal(source.weights[name], weight)
    exact = diffusers.read(runs / "whole", "sigma=0.05").weights
    kept = reader.read_weights(layout.checkpoint(runs / "whole", STEPS), "power/0.05")
    for name, weight in kept.items():
        torch.testing.assert_close(exact[name], weight, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_records_its_averages_in_the_stages_order(runs: Path, toy: Path) -> None:
    found = reader.read_index(layout.checkpoint(runs / "whole", STEPS))
    assert json.loads(found.about["averages"]) == dict.fromkeys(NAMES[3:], 0)
    assert found.vectors == NAMES
    assert tuple(profiles(load_stage(str(toy / "stage.yaml"), [EMA]).ema)) == NAMES[3:]


def test_the_chosen_average_is_drawn_and_distances_are_logged(runs: Path) -> None:
    board = EventAccumulator(str(runs / "whole" / layout.TENSORBOARD), size_guidance={"images": 0})
    board.Reload()
    assert board.Tags()["images"] == ["preview/ema/0.99"]
    lines = [json.loads(line) for line in (runs / "whole" / layout.METRICS).read_text().splitlines()]
    last = lines[-1]
    master = held(runs / "whole", "master").double()
    for name in NAMES[3:]:
        wanted = float((held(runs / "whole", name).double() - master).norm() / master.norm())
        assert last[f"distance/{name}"] == pytest.approx(wanted, rel=1e-4)
