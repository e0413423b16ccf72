"""What becomes of a run whose data spoil a step: real ranks, real DeepSpeed, one planted sample."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModel

from bigdiff.checkpoint import index as checkpoints
from bigdiff.checkpoint import layout, reader
from bigdiff.checkpoint.state import Window
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.data import index, manifest
from bigdiff.data.member import pack
from bigdiff.data.order import Order
from bigdiff.models import components
from bigdiff.runtime import seeding
from bigdiff.runtime.files import sha256

SHARDS, ROWS, TOTAL = 16, 24, 8  # 48 steps an epoch
NAN_STEP, SPIKE_STEP, STEPS = 13, 25, 34
Start = Callable[..., Any]  # the fixture of tests/e2e/conftest.py


def moments(shard: int, row: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    drawn = np.random.default_rng((shard, row)).normal(size=(4, 4, 4))
    drawn[2:] -= 4  # log-variances
    return drawn.astype(np.float16)


@pytest.fixture(scope="module")
def order() -> Order:
    return Order(sizes=np.array([ROWS] * SHARDS), seed=0, window=2)


@pytest.fixture(scope="module")
def latents(toy: Path, order: Order, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, float], Path]:
    """A set in which one sample of a step has its means multiplied: by nan, or by so much that it is a spike."""
    made: dict[tuple[int, float], Path] = {}
    contract = manifest.read(toy / "latents", "latents").contract

    def make(step: int, factor: float) -> Path:
        if (step, factor) not in made:
            shards, rows = order.locate(TOTAL * step + 5, 1)
            made[step, factor] = tmp_path_factory.mktemp("poisoned")
            write(made[step, factor], contract, (int(shards[0]), int(rows[0])), factor)
        return made[step, factor]

    return make


def write(folder: Path, contract: dict[str, Any], bad: tuple[int, int], factor: float) -> None:
    shards = []
    for number in range(SHARDS):
        name, keys = f"{number:05d}", [f"{number:05d}{row:04d}" for row in range(ROWS)]
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for row, key in enumerate(keys):
                stored = moments(number, row)
                if (number, row) == bad:
                    stored[:2] *= np.float16(factor)
                member = tarfile.TarInfo(f"{key}.safetensors")
                content = pack(stored, np.full(12, 400 + row, np.uint16))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found = index.members(folder / f"{name}.tar")
        urls = [f"http://example.org/{key}" for key in keys]
        pq.write_table(pa.table({"key": keys, "url": urls, **index.columns(keys, found)}), folder / f"{name}.parquet")
        tar = folder / f"{name}.tar"
        shards.append(manifest.Shard(name=name, samples=ROWS, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract))


def plain(stage: Stage, order: Order, skip: set[int]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and their average after the stage in plain torch, as if the steps `skip` had not been; v target."""
    torch.manual_seed(stage.seed)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    assert stage.model.text is not None
    text = CLIPTextModel.from_pretrained(stage.model.text.encoder).eval()
    empty = torch.tensor([49406] + [49407] * 11)
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01, eps=stage.optim.eps)
    ema = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    for updates, step in enumerate(step for step in range(stage.steps) if step not in skip):
        positions = torch.arange(TOTAL * step, TOTAL * (step + 1))
        places = list(zip(*(values.tolist() for values in order.locate(TOTAL * step, TOTAL)), strict=True))
        stored = DiagonalGaussianDistribution(torch.stack([torch.from_numpy(moments(s, r)) for s, r in places]).float())
        clean = (stored.mean + stored.std * seeding.normal(stage.seed, "posterior", positions, (2, 4, 4))) * 0.5
        tokens = torch.tensor([[400 + row] * 12 for _, row in places])
        tokens[seeding.uniform(stage.seed, "text_dropout", positions) < stage.text_dropout] = empty
        noise = seeding.normal(stage.seed, "noise", positions, (2, 4, 4))
        times = seeding.integers(stage.seed, "timestep", positions, 1000)
        with torch.no_grad():
            states = text(tokens).last_hidden_state
        noisy, target = ddpm.add_noise(clean, noise, times), ddpm.get_velocity(clean, noise, times)
        loss = (unet(noisy, times, states).sample - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 1e-6 + (1 - 1e-6) * step / 3)
        optimizer.step()
        decay = min(0.9, (1 + updates) / (10 + updates))
        ema = {name: decay * ema[name] + (1 - decay) * weight.detach() for name, weight in unet.named_parameters()}
    return (
        {f"unet.{name}": weight.detach() for name, weight in unet.named_parameters()},
        {f"unet.{name}": weight for name, weight in ema.items()},
    )


# A large eps keeps Adam from dividing tiny gradients by their own size, which magnifies rounding a hundredfold
COMMON = (
    f"steps={STEPS}",
    "diffusion.prediction_type=v_prediction",
    "optim.eps=1e-3",
    "recovery.window=20",
    "recovery.budget=0.5",
    "checkpoint.every=100",
    "data.audit=true",
    "batch.micro=4",  # two passes on one rank, one on two
)


def stage_of(toy: Path, runs: Path, *arguments: str) -> Stage:
    return load_stage(str(toy / "stage.yaml"), [f"runs={runs}", *arguments])


def same_weights(run: Path, step: int, raw: dict[str, torch.Tensor], ema: dict[str, torch.Tensor]) -> None:
    for which, expected in (("raw", raw), ("ema", ema)):
        got = reader.read_weights(layout.checkpoint(run, step), which)
        for name, weight in expected.items():
            torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-6)


def incidents(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "recovery.jsonl").read_text().splitlines()]


def audit(run: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bigdiff.data.audit", str(run), "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_sample_that_is_not_finite_costs_its_step_and_nothing_else(
    start: Start, latents: Callable[[int, float], Path], order: Order, toy: Path, tmp_path: Path
) -> None:
    """One sample's stored means are nan. On one rank and on two the run is a plain loop that leaves its step out."""
    arguments = (*COMMON, f"data.latents={latents(NAN_STEP, np.nan)}")
    raw, ema = plain(stage_of(toy, tmp_path, *arguments), order, {NAN_STEP})
    shard, row = (int(values[0]) for values in order.locate(TOTAL * NAN_STEP + 5, 1))
    runs = [start(size, *arguments, f"name=ranks{size}") for size in (1, 2)]
    for size, ranks in enumerate(runs, 1):
        texts = ranks.wait()
        assert all(text.splitlines()[-1] == f"finished {STEPS}" for text in texts), texts
        assert f"step {NAN_STEP}: non-finite loss (loss nan, gradient norm inf); it moved no weights" in texts[0]
        run = tmp_path / f"ranks{size}"
        same_weights(run, STEPS, raw, ema)
        state = checkpoints.read(layout.checkpoint(run, STEPS)).state
        assert state.skipped == (Window(begin=NAN_STEP, end=NAN_STEP + 1, reason="non-finite loss"),)
        (incident,) = incidents(run)
        assert (incident["step"], incident["action"]) == (NAN_STEP, "skip")
        (sample,) = incident["samples"]
        assert sample["key"] == f"{shard:05d}{row:04d}"
        assert sample["url"] == f"http://example.org/{sample['key']}"
        assert (sample["rank"], sample["position"]) == (size - 1, TOTAL * NAN_STEP + 5)
        lines = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
        assert [line["recovery/skipped_steps"] for line in lines] == [0.0] * NAN_STEP + [1.0] * (STEPS - NAN_STEP - 1)
    proof = audit(tmp_path / "ranks2")
    assert proof["proven"]
    assert proof["skipped"] == [{"begin": NAN_STEP, "end": NAN_STEP + 1, "samples": TOTAL, "reason": "non-finite loss"}]
    asked = audit(tmp_path / "ranks2", "--key", f"{shard:05d}{row:04d}")
    assert "was not trained on" in asked["answer"] and f"{NAN_STEP} (non-finite loss)" in asked["answer"]


def test_a_spike_takes_the_run_back_and_its_window_is_left_out(
    start: Start, latents: Callable[[int, float], Path], order: Order, toy: Path, tmp_path: Path
) -> None:
    """The first checkpoint is made when spikes can be seen, at step 20. Killed behind it, the run ends the same."""
    arguments = (*COMMON, f"data.latents={latents(SPIKE_STEP, 1e4)}", "name=spiky")
    raw, ema = plain(stage_of(toy, tmp_path, *arguments), order, set(range(20, SPIKE_STEP + 1)))
    run, back = tmp_path / "spiky", (20, SPIKE_STEP + 1)
    kill = f"""
import os, signal
from bigdiff.train import loop
passes = loop.forward_backward
def until_then(run, batches, step):
    if step == {SPIKE_STEP + 4}:
        os.kill(os.getpid(), signal.SIGKILL)
    return passes(run, batches, step)
loop.forward_backward = until_then
"""
    texts = start(2, *arguments, before=kill).wait()
    (told,) = (line for line in texts[0].splitlines() if line.startswith(f"step {SPIKE_STEP}: "))
    assert told.startswith(f"step {SPIKE_STEP}: loss spike (loss ")
    assert "back to the weights of step 20, and on with the data" in told
    saved = sorted(layout.step_of(folder) for folder in layout.saved(run))
    assert saved == [20, SPIKE_STEP + 1]
    texts = start(1, *arguments).wait()
    assert f"from step {SPIKE_STEP + 1}" in texts[0]
    assert texts[0].splitlines()[-1] == f"finished {STEPS}"
    same_weights(run, STEPS, raw, ema)
    found = checkpoints.read(layout.checkpoint(run, STEPS)).state
    assert found.skipped == (Window(begin=back[0], end=back[1], reason="loss spike"),)
    assert found.samples_seen == STEPS * TOTAL
    (incident,) = incidents(run)
    assert (incident["action"], incident["window"]) == ("roll back", list(back))
    shard, row = (int(values[0]) for values in order.locate(TOTAL * SPIKE_STEP + 5, 1))
    assert incident["samples"][0]["key"] == f"{shard:05d}{row:04d}"  # the largest of all ranks' comes first
    assert incident["samples"][0]["rank"] == 1
    assert f"samples {shard:05d}{row:04d}, " in told
    proof = audit(run)
    assert proof["proven"] and [start["size"] for start in proof["starts"]] == [2, 1]
    assert proof["skipped"] == [{"begin": 20, "end": SPIKE_STEP + 1, "samples": 48, "reason": "loss spike"}]


def test_what_cannot_be_recovered_ends_the_run_with_a_sentence(
    start: Start, latents: Callable[[int, float], Path], tmp_path: Path
) -> None:
    spiky, broken = f"data.latents={latents(SPIKE_STEP, 1e4)}", f"data.latents={latents(NAN_STEP, np.nan)}"
    poor = start(2, *COMMON, spiky, "name=poor", "recovery.budget=0.1")
    alone = start(1, *COMMON, broken, "name=alone", "recovery.nonfinite_in_a_row=1")
    back = start(1, *COMMON, broken, "name=back", "recovery.nonfinite_in_a_row=1", "checkpoint.every=12")
    for text in poor.wait():
        last = text.splitlines()[-1]
        assert last.startswith(f"failed: step {SPIKE_STEP}: loss spike (")
        assert "6 of the stage's 34 steps moved no weights, more than recovery.budget=0.1 allows" in last
    assert incidents(tmp_path / "poor")[-1]["action"] == "end"
    (text,) = alone.wait()
    assert "there is no checkpoint to go back to: set checkpoint.every or optim.lr lower" in text.splitlines()[-1]
    (text,) = back.wait()
    assert text.splitlines()[-1] == f"finished {STEPS}"
    state = checkpoints.read(layout.checkpoint(tmp_path / "back", STEPS)).state
    assert state.skipped == (Window(begin=12, end=NAN_STEP + 1, reason="non-finite loss"),)
