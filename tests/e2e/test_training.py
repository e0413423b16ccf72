"""The real loop under real DeepSpeed ranks against plain torch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset as wds
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModel

from bigdiff.checkpoint import layout, reader
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.data.order import Order
from bigdiff.models import components
from bigdiff.runtime import seeding

TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
outcome = train_stage(load_stage(sys.argv[1], sys.argv[2:]))
print("finished" if outcome.finished else "stopped", outcome.step)
"""
Ranks = Callable[..., list[str]]


def losses(stage: Stage) -> list[float]:
    lines = (layout.run_folder(stage.runs, stage.name) / layout.METRICS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["train/loss"] for record in records]


def weights(stage: Stage, step: int, which: str) -> dict[str, torch.Tensor]:
    return reader.read_weights(layout.checkpoint(layout.run_folder(stage.runs, stage.name), step), which)


def plain_torch(stage: Stage) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same training in plain torch, diffusers and stock webdataset, on one process and whole batches."""
    tars = sorted(str(path) for path in Path(stage.data.latents).glob("*.tar"))
    shards = [
        [safetensors.torch.load(s["safetensors"]) for s in wds.WebDataset([tar], shardshuffle=False)] for tar in tars
    ]
    order = Order(sizes=np.array([len(shard) for shard in shards]), seed=stage.seed, window=stage.data.window)
    torch.manual_seed(stage.seed)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    text = CLIPTextModel.from_pretrained(stage.model.text.encoder).eval()
    empty = torch.tensor([49406] + [49407] * 11)
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01)
    ema = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    told = []
    for step in range(stage.steps):
        samples = [shards[s][r] for s, r in zip(*order.locate(8 * step, 8), strict=True)]
        positions = torch.arange(8 * step, 8 * step + 8)
        stored = DiagonalGaussianDistribution(torch.stack([sample["moments"] for sample in samples]).float())
        latents = (stored.mean + stored.std * seeding.normal(stage.seed, "posterior", positions, (2, 4, 4))) * 0.5
        tokens = torch.from_numpy(np.stack([sample["tokens"].numpy().astype(np.int64) for sample in samples]))
        tokens[seeding.uniform(stage.seed, "text_dropout", positions) < stage.text_dropout] = empty
        noise = seeding.normal(stage.seed, "noise", positions, (2, 4, 4))
        timesteps = seeding.integers(stage.seed, "timestep", positions, 1000)
        with torch.no_grad():
            states = text(tokens).last_hidden_state
        loss = (unet(ddpm.add_noise(latents, noise, timesteps), timesteps, states).sample - noise).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 1e-6 + (1 - 1e-6) * step / 3)
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        ema = {name: decay * ema[name] + (1 - decay) * weight.detach() for name, weight in unet.named_parameters()}
        told.append(loss.item())
    return (
        told,
        {f"unet.{name}": weight.detach() for name, weight in unet.named_parameters()},
        {f"unet.{name}": weight for name, weight in ema.items()},
    )


def test_one_rank_two_ranks_and_plain_torch_agree(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    stages = []
    for size in (1, 2):
        arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", f"name=ranks{size}"]
        assert run_ranks(TRAIN, size, *arguments)[0].splitlines()[-1] == "finished 20"
        stages.append(load_stage(arguments[0], arguments[1:]))
    expected, raw, ema = plain_torch(stages[0])
    one, two = (losses(stage) for stage in stages)
    assert one == pytest.approx(two, abs=1e-5)
    assert one == pytest.approx(expected, abs=1e-5)
    for stage in stages:
        for which, reference in (("raw", raw), ("ema", ema)):
            got = weights(stage, 20, which)  # type: ignore[arg-type]
            assert got.keys() == reference.keys()
            for name, weight in reference.items():
                # Adam divides tiny gradients by their own size, so single weights differ by rounding more than losses
                torch.testing.assert_close(got[name], weight, rtol=0, atol=2e-4)


def test_bf16_over_fp32_masters_follows_fp32(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "engine.zero_stage=2", "steps=8"]
    for precision in ("fp32", "bf16"):
        run_ranks(TRAIN, 2, *arguments, f"engine.precision={precision}", f"name={precision}")
    full, half = (losses(load_stage(arguments[0], [*arguments[1:], f"name={name}"])) for name in ("fp32", "bf16"))
    assert half == pytest.approx(full, rel=0.03)
    assert half != full
    assert np.mean(half[-3:]) < half[0]
