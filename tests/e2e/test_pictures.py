"""Training from pictures: the same losses as from latents made of them, and unconditional models of drawn digits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, LDMPipeline
from PIL import Image, ImageDraw, ImageFont

from bigdiff.checkpoint import layout, reader
from bigdiff.config.load import load_stage
from bigdiff.evaluate import sampling, textless
from bigdiff.export.diffusers import export
from bigdiff.prep import encode, folder, latent_settings
from bigdiff.runtime.seeding import normal
from bigdiff.train import networks

Ranks = Callable[..., list[str]]
TrainAll = Callable[..., list[str]]
ROUNDING = 2e-4  # relative: the moments that a set stores are rounded to float16
DIGITS = """
name: digits
runs: {root}/runs
resolution: 16
steps: 120
text_dropout: 0
data: {{images: {root}/digits, window: 2, flip: 0, crop: random}}
batch: {{total: 16, micro: 8}}
model:
  unet:
    latent_channels: 1
    block_out_channels: [16, 32]
    layers_per_block: 1
    down_block_types: [DownBlock2D, AttnDownBlock2D]
    up_block_types: [AttnUpBlock2D, UpBlock2D]
    cross_attention_dim: 0
    attention_head_dim: 8
    norm_num_groups: 8
diffusion: {{beta_schedule: linear, beta_start: 0.0001, beta_end: 0.02}}
optim: {{lr: 2e-3, warmup_steps: 10}}
ema: {{decays: [0.9]}}
checkpoint: {{every: 60, keep: 9}}
log: {{every: 1}}
preview: {{every: 60, count: 3, steps: 4}}
"""
TEXTLESS = [
    "model.text=null",
    "text_dropout=0",
    "model.unet.cross_attention_dim=0",
    "model.unet.down_block_types=[AttnDownBlock2D,DownBlock2D]",
    "model.unet.up_block_types=[UpBlock2D,AttnUpBlock2D]",
]


def draw_digits(where: Path, count: int) -> None:
    """Digits of the default font, white on black, 20 px with a random shift."""
    where.mkdir()
    for number in range(count):
        picture = Image.new("L", (20, 20))
        x, y = np.random.default_rng(number).integers(3, 9, 2).tolist()
        ImageDraw.Draw(picture).text((x, y), str(number % 10), fill=255, font=ImageFont.load_default(size=12))
        picture.save(where / f"{number:04d}.png")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (run / layout.METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(train_all: TrainAll, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with sets and runs, all trained once, and what was refused."""
    root = tmp_path_factory.mktemp("pictures")
    draw_digits(root / "drawn", 96)
    folder.pack(root / "drawn", root / "digits", 24, 0, lambda _: None)
    (root / "digits.yaml").write_text(DIGITS.format(root=root))
    stage = load_stage(str(toy / "stage.yaml"))
    encode.encode(
        root / "digits",
        root / "latents",
        latent_settings.of_stage(stage, latent_settings.Asked(workers=1, least_psnr=-99.0)),
    )
    few = [str(toy / "stage.yaml"), f"runs={root}/runs", "steps=6", "optim.warmup_steps=2", "checkpoint.every=3"]
    pictures = ["data.latents=", f"data.images={root}/digits", "data.audit=true"]
    varied = [*pictures, "data.crop=random", "data.flip=0.5"]
    digits = str(root / "digits.yaml")
    jobs = [
        [*few, "name=on-latents", f"data.latents={root}/latents"],
        [*few, "name=on-images", *pictures],
        [*few, "name=varied", *varied],
        [*few, "name=stopped", *varied, "steps=3"],
        [*few, "name=stopped", *varied],
        [*few, "name=stopped", *varied, "data.flip=0.25", "steps=9"],
        [*few, "name=textless", *TEXTLESS, "preview.every=3", "preview.count=2", "preview.steps=3"],
        [digits],
        [digits, "name=again", "steps=60"],
        [digits, "name=again"],
    ]
    return root, train_all(jobs)


def weights(root: Path, name: str, which: str) -> dict[str, torch.Tensor]:
    return reader.read_weights(layout.saved(root / "runs" / name)[0], which)


def assert_equal(root: Path, one: str, other: str) -> None:
    for which in ("raw", "ema", "exp_avg_sq"):
        ours, theirs = weights(root, one, which), weights(root, other, which)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pictures_give_the_losses_of_the_latents_made_of_them(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    on_images, on_latents = (losses(root / "runs" / name) for name in ("on-images", "on-latents"))
    assert on_images == pytest.approx(on_latents, rel=ROUNDING)
    assert losses(root / "runs" / "varied") != pytest.approx(on_latents, rel=10 * ROUNDING)  # crops and flips count


def test_a_run_on_pictures_resumes_exactly_is_audited_and_keeps_its_framing(
    trained: tuple[Path, list[str]], run_ranks: Ranks
) -> None:
    root, refused = trained
    assert_equal(root, "stopped", "varied")
    assert losses(root / "runs" / "stopped") == losses(root / "runs" / "varied")
    assert (
        len(refused) == 1 and "how pictures are framed (data.crop, data.flip) is 'random crop, mirrored" in refused[0]
    )
    (report,) = run_ranks("from bigdiff.data.audit import main; main()", 1, str(root / "runs" / "stopped"), "--json")
    proof = json.loads(report)
    assert proof["proven"] and proof["steps"] == 6 and len(proof["starts"]) == 2


def test_a_model_of_digits_learns_resumes_exactly_and_is_drawn_from(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, _ = trained
    curve = losses(root / "runs" / "digits")
    assert curve[0] > 0.9 and np.mean(curve[-20:]) < 0.3  # noise predicted as nothing has a loss of 1
    assert_equal(root, "again", "digits")
    export(root / "runs" / "digits", tmp_path / "out")
    stock = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert stock(batch_size=1, num_inference_steps=2).images[0].size == (16, 16)

    stage = load_stage(str(root / "digits.yaml"))
    previewer = networks.previewer(networks.load(stage))
    assert previewer is not None
    picture = previewer.draw(weights(root, "digits", "ema"))
    sampler = DDIMScheduler.from_config(stock.scheduler.config)
    sampler.set_timesteps(4)
    drawn = normal(stage.seed, "preview", torch.arange(3), (1, 16, 16))
    with torch.no_grad():
        for step in sampler.timesteps:
            drawn = sampler.step(stock.unet(drawn, step).sample, step, drawn).prev_sample
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round()
    assert np.abs(picture[:16, :16, 0].astype(int) - pixels[0, 0].numpy().astype(int)).max() <= 1

    pipeline = sampling.load(tmp_path / "out")
    settings = sampling.Sampling(steps=3, batch=2)
    three = textless.draw(pipeline, 3, settings)
    assert [one.size for one in three] == [(16, 16)] * 3 and three[0].mode == "RGB"
    (first,) = textless.draw(pipeline, 1, settings)
    assert np.abs(np.asarray(first).astype(int) - np.asarray(three[0]).astype(int)).max() <= 1


def test_a_model_of_latents_without_text_is_drawn_from(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, _ = trained
    export(root / "runs" / "textless", tmp_path / "out")
    stock = LDMPipeline.from_pretrained(tmp_path / "out")
    assert stock(batch_size=1, num_inference_steps=2).images[0].size == (8, 8)
    pipeline = sampling.load(tmp_path / "out")
    assert len(textless.draw(pipeline, 2, sampling.Sampling(steps=3, scheduler="euler"))) == 2
