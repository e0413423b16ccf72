"""The trainer against the training step of diffusers' examples/text_to_image/train_text_to_image.py, in our own words.

Data order, noise, timesteps and first weights are given to both; everything else each computes its own way.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import webdataset as wds
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel

from bigdiff.checkpoint import layout
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.data.order import Order
from bigdiff.models import components
from bigdiff.runtime import seeding

Ranks = Callable[..., list[str]]
STEPS, TOTAL, MICRO = 6, 8, 2
SHAPE = (2, 4, 4)
# all runs in one process: DeepSpeed takes far longer to come than the steps
TRAIN = """
import json, sys
from pathlib import Path
from bigdiff.config.load import load_stage
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup
world = enter(60)
for options in json.loads(sys.argv[2]):
    stage = load_stage(sys.argv[1], options)
    with setup.building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 60)) as run:
        loop.train(run)
"""


@dataclass(frozen=True)
class Arguments:
    """What that script is told, by its names; zero SNR comes with the scheduler's config."""

    prediction_type: str
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    zero_snr: bool = False

    @property
    def options(self) -> list[str]:
        """The same, told to bigdiff."""
        options = [
            f"diffusion.prediction_type={self.prediction_type}",
            f"diffusion.offset_noise={self.noise_offset}",
            f"diffusion.input_perturbation={self.input_perturbation}",
            f"diffusion.zero_terminal_snr={str(self.zero_snr).lower()}",
        ]
        if self.snr_gamma is not None:
            options += ["diffusion.weighting=min_snr", f"diffusion.snr_gamma={self.snr_gamma}"]
        return options


CASES = {
    "eps": Arguments("epsilon"),
    "v": Arguments("v_prediction"),
    "eps-all": Arguments("epsilon", snr_gamma=5.0, noise_offset=0.1, input_perturbation=0.1),
    "v-all": Arguments("v_prediction", snr_gamma=5.0, noise_offset=0.1, input_perturbation=0.1),
    "v-zero": Arguments("v_prediction", snr_gamma=1.0, zero_snr=True),
}


@dataclass(frozen=True)
class Micro:
    """A micro-batch, with the numbers that a script would draw from torch's generators."""

    latents: torch.Tensor
    states: torch.Tensor
    noise: torch.Tensor
    offset: torch.Tensor
    perturbation: torch.Tensor
    timesteps: torch.Tensor


def micro_batches(stage: Stage) -> Iterator[list[Micro]]:
    """Each step's micro-batches, read by stock webdataset."""
    tars = sorted(str(path) for path in Path(stage.data.latents).glob("*.tar"))
    shards = [[safetensors.torch.load(s["safetensors"]) for s in wds.WebDataset([t], shardshuffle=False)] for t in tars]
    order = Order(sizes=np.array([len(shard) for shard in shards]), seed=stage.seed, window=stage.data.window)
    text = CLIPTextModel.from_pretrained(stage.model.text.encoder).eval()
    for step in range(STEPS):
        micros = []
        for start in range(TOTAL * step, TOTAL * (step + 1), MICRO):
            samples = [shards[shard][row] for shard, row in zip(*order.locate(start, MICRO), strict=True)]
            positions = torch.arange(start, start + MICRO)
            posterior = DiagonalGaussianDistribution(torch.stack([sample["moments"] for sample in samples]).float())
            drawn = seeding.normal(stage.seed, "posterior", positions, SHAPE)
            tokens = np.stack([sample["tokens"].numpy().astype(np.int64) for sample in samples])
            with torch.no_grad():
                states = text(torch.from_numpy(tokens))[0]
            micros.append(
                Micro(
                    latents=(posterior.mean + posterior.std * drawn) * 0.5,
                    states=states,
                    noise=seeding.normal(stage.seed, "noise", positions, SHAPE),
                    offset=seeding.normal(stage.seed, "offset_noise", positions, (2, 1, 1)),
                    perturbation=seeding.normal(stage.seed, "input_perturbation", positions, SHAPE),
                    timesteps=seeding.integers(stage.seed, "timestep", positions, 1000),
                )
            )
        yield micros


def step_loss(unet: UNet2DConditionModel, ddpm: DDPMScheduler, given: Micro, told: Arguments) -> torch.Tensor:
    """The loss of one micro-batch as that script computes it."""
    noise = given.noise
    if told.noise_offset:
        noise = noise + told.noise_offset * given.offset
    seen = noise + told.input_perturbation * given.perturbation if told.input_perturbation else noise
    noisy = ddpm.add_noise(given.latents, seen, given.timesteps)
    wanted = {"epsilon": noise, "v_prediction": ddpm.get_velocity(given.latents, noise, given.timesteps)}
    target = wanted[ddpm.config.prediction_type]
    predicted = unet(noisy, given.timesteps, given.states, return_dict=False)[0]
    if told.snr_gamma is None:
        return F.mse_loss(predicted.float(), target.float(), reduction="mean")
    snr = compute_snr(ddpm, given.timesteps)
    divisor = snr if ddpm.config.prediction_type == "epsilon" else snr + 1
    weight = torch.minimum(snr, torch.full_like(snr, told.snr_gamma)) / divisor
    each = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=[1, 2, 3])
    return (each * weight).mean()


def script(stage: Stage, told: Arguments) -> list[float]:
    """The losses of that script's loop, with accumulation, clipping and a constant rate."""
    torch.manual_seed(stage.seed)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    ddpm = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=told.prediction_type,
        rescale_betas_zero_snr=told.zero_snr,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    losses = []
    for micros in micro_batches(stage):
        total = 0.0
        for micro in micros:
            loss = step_loss(unet, ddpm, micro, told)
            total += loss.item() / len(micros)
            (loss / len(micros)).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def losses(stage: Stage) -> list[float]:
    """What bigdiff said that it optimised, step by step."""
    lines = (layout.run_folder(stage.runs, stage.name) / layout.METRICS).read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_the_losses_are_those_of_the_diffusers_script(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    common = [f"runs={tmp_path}", f"steps={STEPS}", "text_dropout=0.0", "optim.warmup_steps=0", "checkpoint.every=99"]
    options = {name: [*common, f"name={name}", *told.options] for name, told in CASES.items()}
    run_ranks(TRAIN, 1, str(toy / "stage.yaml"), json.dumps(list(options.values())))
    first = set()
    for name, told in CASES.items():
        stage = load_stage(str(toy / "stage.yaml"), options[name])
        assert (stage.batch.total, stage.batch.micro) == (TOTAL, MICRO)
        ours, theirs = losses(stage), script(stage, told)
        assert len(ours) == STEPS
        assert ours == pytest.approx(theirs, rel=0, abs=1e-5), name
        assert ours[0] == pytest.approx(theirs[0], rel=1e-6), name  # before rounding has moved a weight
        first.add(round(ours[0], 4))
    assert len(first) == len(CASES)  # each setting has its effect
