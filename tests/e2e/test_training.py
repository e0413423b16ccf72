"""The real loop under real DeepSpeed ranks against plain torch, and through kills and stops."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

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
# SIGKILL of every rank right behind the commit of step 4: nothing of the process is left to help
DIE_AT_FOUR = """
import os, signal
from bigdiff.train import loop
save = loop.save
def save_and_die(run):
    save(run)
    if run.state.step == 4:
        run.checkpoints.wait(run.world)
        os.kill(os.getpid(), signal.SIGKILL)
loop.save = save_and_die
"""
Ranks = Callable[..., list[str]]
Start = Callable[..., list[Popen[str]]]


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


def test_eight_steps_are_four_a_kill_and_four(run_ranks: Ranks, start_ranks: Start, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "steps=8"]
    run_ranks(TRAIN, 2, *arguments, "name=whole")
    died = start_ranks(DIE_AT_FOUR + TRAIN, 2, *arguments, "name=killed")
    for process in died:
        process.communicate(timeout=120)
    assert [process.returncode for process in died] == [-signal.SIGKILL] * 2
    killed = load_stage(arguments[0], [*arguments[1:], "name=killed"])
    assert len(losses_so_far(killed)) == 4
    run_ranks(TRAIN, 2, *arguments, "name=killed")
    whole = load_stage(arguments[0], [*arguments[1:], "name=whole"])
    assert losses(killed) == losses(whole)  # bit for bit
    for which in ("raw", "ema"):
        ours, theirs = (weights(stage, 8, which) for stage in (killed, whole))  # type: ignore[arg-type]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stop_signal_to_one_rank_saves_on_all(start_ranks: Start, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "steps=4000", "checkpoint.every=4000", "name=stopped"]
    stage = load_stage(arguments[0], arguments[1:])
    outputs = start_and_signal(start_ranks, arguments, stage, signal.SIGUSR2)
    ended = [output.splitlines()[-1] for output in outputs]
    assert ended[0] == ended[1]
    assert ended[0].startswith("stopped ")
    step = int(ended[0].split()[1])
    assert 0 < step < 4000
    newest = layout.latest(layout.run_folder(stage.runs, stage.name))
    assert newest is not None
    assert layout.step_of(newest) == step


def test_bf16_over_fp32_masters_follows_fp32(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "engine.zero_stage=2", "steps=8"]
    for precision in ("fp32", "bf16"):
        run_ranks(TRAIN, 2, *arguments, f"engine.precision={precision}", f"name={precision}")
    full, half = (losses(load_stage(arguments[0], [*arguments[1:], f"name={name}"])) for name in ("fp32", "bf16"))
    assert half == pytest.approx(full, rel=0.03)
    assert half != full
    assert np.mean(half[-3:]) < half[0]


def losses_so_far(stage: Stage) -> list[str]:
    file = layout.run_folder(stage.runs, stage.name) / layout.METRICS
    return file.read_text().splitlines() if file.exists() else []


def start_and_signal(start: Start, arguments: list[str], stage: Stage, number: signal.Signals) -> list[str]:
    """Start two ranks; when the run has passed step 4, send `number` to rank 1 alone."""
    processes = start(TRAIN, 2, *arguments)
    try:
        deadline = time.monotonic() + 120
        while len(losses_so_far(stage)) < 5:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes), processes[0].stderr.read()  # type: ignore[union-attr]
            time.sleep(0.005)
        os.kill(processes[1].pid, number)
        return [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
