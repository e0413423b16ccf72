"""The loss on held-out samples of real runs: the same for any processes, and that of stock networks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from bigdiff.checkpoint import layout
from bigdiff.config.load import load_stage
from bigdiff.export import diffusers
from bigdiff.runtime.world import World
from bigdiff.train import networks
from bigdiff.train.held import opened

SETTINGS = ["validation.every=4", "validation.samples=48", "log.every=2", "steps=9"]
KINDS = {
    "plain": [],
    "frozen": ["model.frozen=[unet.down_blocks.*]"],
    "zero3": ["engine.zero_stage=3", "model.text.train=true"],
}


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory, train_all: Callable[..., list[str]]) -> Path:
    root = tmp_path_factory.mktemp("validation")
    location = shutil.copytree(toy / "latents", root / "held")
    common = [str(toy / "stage.yaml"), f"runs={root}", f"validation.set={location}", *SETTINGS]
    for size in (1, 2, 4):
        jobs = [[*common, f"name={kind}-{size}", *options] for kind, options in KINDS.items()]
        assert train_all(jobs, size) == []
    return root


def validations(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    found = {line["step"]: {key: one for key, one in line.items() if key.startswith("validation/")} for line in lines}
    return {step: one for step, one in found.items() if one}


@pytest.mark.parametrize("kind", KINDS)
def test_any_processes_find_the_same(runs: Path, kind: str) -> None:
    alone = validations(runs / f"{kind}-1")
    assert list(alone) == [4, 8, 9]  # and at the end
    assert {"validation/loss", "validation/error", "validation/loss_ema", "validation/loss_ema_t/9"} <= alone[4].keys()
    assert alone[9]["validation/loss"] != alone[9]["validation/loss_ema"]
    for size in (2, 4):
        several = validations(runs / f"{kind}-{size}")
        assert list(several) == list(alone)
        for step, values in alone.items():
            assert several[step] == pytest.approx(values, rel=2e-5)


@pytest.mark.parametrize(("weights", "suffix"), [("raw", ""), ("ema", "_ema")])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_loss_of_stock_networks(runs: Path, toy: Path, kind: str, weights: str, suffix: str) -> None:
    stage = load_stage(str(runs / f"{kind}-1" / layout.CONFIG))
    stock = diffusers.build(diffusers.read(runs / f"{kind}-1", weights))
    noises = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    losses, bins = [], []
    with opened(networks.load(stage), world) as held, torch.no_grad():
        batches = held.batches()
        for batch in (batch for _ in range(6) for batch in next(batches)):  # one by one: their buffers are used again
            assert held.captions is not None
            clean = held.samples.clean(batch)
            steps = held.objective.timesteps.draw(0, batch.positions)
            noise = held.objective.noise(clean, batch.positions)
            states = stock.text_encoder(held.captions.found(batch)).last_hidden_state
            prediction = stock.unet(noises.add_noise(clean, noise, steps), steps, states).sample
            losses += (prediction - noise).square().mean((1, 2, 3)).tolist()
            bins += (steps // 100).tolist()
        batches.close()
    found = validations(runs / f"{kind}-1")[9]
    assert found[f"validation/loss{suffix}"] == pytest.approx(np.mean(losses), rel=1e-5)
    for number in range(10):
        own = [loss for loss, at in zip(losses, bins, strict=True) if at == number]
        assert found[f"validation/loss{suffix}_t/{number}"] == pytest.approx(np.mean(own), rel=1e-5)


def test_the_line_for_a_person_has_both(runs: Path) -> None:
    line = json.loads((runs / "plain-1" / layout.METRICS).read_text().splitlines()[-1])
    assert line["step"] == 9 and line["validation/error"] > 0
