"""A real autoencoder stage under real DeepSpeed ranks: drawn pictures in, a diffusers AutoencoderKL out."""

import io
import json
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.checkpoint import layout, reader
from bigdiff.config.load import load_stage
from bigdiff.data import index, manifest
from bigdiff.models.components import load_vae
from bigdiff.quickstart import scenes
from bigdiff.runtime.files import sha256
from bigdiff.train import release
from bigdiff.train.autoencoders import load

TRAIN = """
import sys
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
outcome = train_stage(load_stage(sys.argv[1], sys.argv[2:]))
print("finished" if outcome.finished else "stopped", outcome.step)
"""
STEPS = 100
STAGE = """
name: tiny
runs: {root}/runs
resolution: 16
steps: {STEPS}
text_dropout: 0.0
data: {{images: {root}/images, window: 2, crop: random, flip: 0.5}}
batch: {{total: 8, micro: 2}}
model:
  autoencoder:
    latent_channels: 4
    block_out_channels: [16, 32]
    layers_per_block: 1
    norm_num_groups: 4
    mid_attention: false
    perceptual_weight: 0
    disc_weight: 0.5
    disc_start: 3
    disc_channels: 8
    disc_layers: 2
optim: {{lr: 1e-3, beta1: 0.5, beta2: 0.9, weight_decay: 0.0, warmup_steps: 0, grad_clip: 0.0}}
ema: {{decays: [0.9]}}
checkpoint: {{every: 50, keep: 9}}
log: {{every: 1}}
preview: {{every: 50, count: 3}}
"""
TERMS = ("train/loss", "train/l1", "train/kl", "train/psnr", "train/gen", "train/disc", "train/adaptive_weight")
Ranks = Callable[..., list[str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage and its image set: 64 drawn scenes in two shards."""
    root = tmp_path_factory.mktemp("autoencoder")
    (root / "images").mkdir()
    (root / "stage.yaml").write_text(STAGE.format(root=root, STEPS=STEPS))
    shards = []
    for number in range(2):
        tar, keys = root / "images" / f"{number:05d}.tar", [f"{number:05d}{row:04d}" for row in range(32)]
        with tarfile.open(tar, "w") as archive:
            for row, key in enumerate(keys):
                member = tarfile.TarInfo(f"{key}.png")
                content = drawn(32 * number + row)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        columns = {"key": keys, "caption": [""] * 32, **index.columns(keys, index.members(tar))}
        pq.write_table(pa.table(columns), tar.with_suffix(".parquet"))
        shards.append(manifest.Shard(name=tar.stem, samples=32, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(root / "images", manifest.Manifest(kind="images", shards=tuple(shards)))
    return root


def drawn(number: int) -> bytes:
    stream = io.BytesIO()
    scenes.render(scenes.scene(0, number), 64).resize((20, 20), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def lines(root: Path, name: str) -> list[dict[str, float]]:
    file = layout.run_folder(f"{root}/runs", name) / layout.METRICS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def trained(root: Path, run_ranks: Ranks) -> Path:
    """The run folder of the stage, trained on two ranks without a disturbance."""
    output = run_ranks(TRAIN, 2, str(root / "stage.yaml"), "name=whole")
    assert output[0].splitlines()[-1] == f"finished {STEPS}"
    return layout.run_folder(f"{root}/runs", "whole")


def test_pictures_become_clearer_and_the_terms_are_told(root: Path, trained: Path) -> None:
    told = lines(root, "whole")
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    quality = [line["train/psnr"] for line in told]
    assert np.mean(quality[-10:]) > np.mean(quality[:3]) + 3.5  # dB
    assert all("train/gen" not in line and "train/adaptive_weight" not in line for line in told[:3])
    assert all(0 < line["train/adaptive_weight"] <= 1e4 for line in told[3:])
    assert all(np.isfinite(line[term]) for line in told[3:] for term in TERMS)
    board = EventAccumulator(str(trained / layout.TENSORBOARD))
    board.Reload()
    assert [event.step for event in board.Images("preview/ema")] == [8 * 50, 8 * STEPS]


@pytest.fixture(scope="module")
def alone(root: Path, run_ranks: Ranks) -> Path:
    """The run folder of the same stage on one rank, eight steps of it."""
    run_ranks(TRAIN, 1, str(root / "stage.yaml"), "name=alone", "steps=8", "checkpoint.every=4", "preview.every=8")
    return layout.run_folder(f"{root}/runs", "alone")


def test_the_discriminator_rests_until_its_step(alone: Path) -> None:
    early, late = (reader.read_weights(layout.checkpoint(alone, step), "raw") for step in (4, 8))
    first = {name: one.detach() for name, one in load(load_stage(str(alone / layout.CONFIG))).trained().items()}
    judges = [name for name in first if name.startswith("discriminator.")]
    assert judges
    # at step 4 it has had one update, that of step 3: Adam moves no weight by more than (1 - b1) / sqrt(1 - b2) rates
    moved = max(float((early[name] - first[name]).abs().max()) for name in judges)
    assert 0 < moved <= 1e-3 * 0.5 / 0.1**0.5 * 1.01
    assert any(not torch.equal(early[name], late[name]) for name in judges)


def test_one_rank_and_two_agree(root: Path, trained: Path, alone: Path) -> None:
    pairs = list(zip(lines(root, "alone"), lines(root, "whole"), strict=False))
    assert len(pairs) == 8
    for one, two in pairs:
        assert [term for term in TERMS if term in one] == [term for term in TERMS if term in two]
        assert all(one[term] == pytest.approx(two[term], rel=1e-5) for term in TERMS if term in one), one["step"]


def test_a_killed_run_goes_on_bit_by_bit(
    root: Path, trained: Path, start_ranks: Callable[..., list[Popen[str]]], run_ranks: Ranks
) -> None:
    arguments, end = (str(root / "stage.yaml"), "name=killed"), STEPS // 2
    folder = layout.run_folder(f"{root}/runs", "killed")
    processes = start_ranks(TRAIN, 2, *arguments, "checkpoint.every=4")
    deadline = time.monotonic() + 300
    while not layout.saved(folder):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()  # type: ignore[union-attr]
        time.sleep(0.005)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=180)
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert len(lines(root, "killed")) < end
    run_ranks(TRAIN, 2, *arguments, f"steps={end}")
    left, right = lines(root, "killed"), lines(root, "whole")[:end]
    assert [line["step"] for line in left] == list(range(1, end + 1))
    for ours, theirs in zip(left, right, strict=True):
        assert all(ours.get(term) == theirs.get(term) for term in TERMS)
    for which in ("raw", "ema"):
        one, other = (reader.read_weights(layout.checkpoint(run, end), which) for run in (folder, trained))  # type: ignore[arg-type]
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_export_is_a_vae_that_a_later_stage_can_name(trained: Path, tmp_path: Path, weights: str) -> None:
    output = tmp_path / "vae"
    released = release.export(trained, output, weights)  # type: ignore[arg-type]
    assert released.checkpoint == layout.checkpoint(trained, STEPS)
    stock = AutoencoderKL.from_pretrained(output)
    kept = reader.read_weights(released.checkpoint, weights)  # type: ignore[arg-type]
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, kept[f"vae.{name}"])
    assert f"scaling factor {stock.config['scaling_factor']:.6g}, measured on 128 pictures" in released.note
    unseen = [Image.open(io.BytesIO(drawn(number))).convert("RGB").resize((16, 16)) for number in range(1000, 1064)]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in unseen])).permute(0, 3, 1, 2) / 127.5 - 1
    vae = load_vae(str(output))
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config["scaling_factor"]
        drawings = vae(pixels).sample.clamp(-1, 1)
    assert float(latents.std()) == pytest.approx(1, abs=0.1)
    assert float(10 * torch.log10(4 / (drawings - pixels).square().mean())) > 13
    release.export(trained, output, weights)  # type: ignore[arg-type] # replaces itself
