"""The objective against the training step of kohya's sd-scripts (train_network.py), in our own words."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel

from bigdiff.config.load import load_stage
from bigdiff.diffusion import objective
from bigdiff.diffusion.objective import per_sample_loss
from bigdiff.models import components
from bigdiff.runtime import seeding

POSITIONS = torch.arange(64, 96)
SHAPE = (2, 4, 4)


@dataclass(frozen=True)
class Arguments:
    """What that script is told, by its names."""

    v_parameterization: bool = False
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    ip_noise_gamma: float = 0.0
    zero_terminal_snr: bool = False

    @property
    def options(self) -> list[str]:
        """The same, told to bigdiff."""
        options = [
            f"diffusion.prediction_type={'v_prediction' if self.v_parameterization else 'epsilon'}",
            f"diffusion.offset_noise={self.noise_offset}",
            f"diffusion.input_perturbation={self.ip_noise_gamma}",
            f"diffusion.zero_terminal_snr={str(self.zero_terminal_snr).lower()}",
        ]
        if self.min_snr_gamma:
            options += ["diffusion.weighting=min_snr", f"diffusion.snr_gamma={self.min_snr_gamma}"]
        return options


CASES = {
    "eps": Arguments(),
    "eps-all": Arguments(min_snr_gamma=5.0, noise_offset=0.0357, ip_noise_gamma=0.05),
    "v": Arguments(v_parameterization=True),
    "v-all": Arguments(v_parameterization=True, min_snr_gamma=1.0, noise_offset=0.1, ip_noise_gamma=0.1),
    "v-zero": Arguments(v_parameterization=True, min_snr_gamma=5.0, zero_terminal_snr=True),
}


def scheduler(told: Arguments) -> DDPMScheduler:
    """Their noise scheduler; zero SNR replaces its tables after it was made."""
    made = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )
    if told.zero_terminal_snr:
        root = made.alphas_cumprod.sqrt()
        made.alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return made


def kohya_loss(
    unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, steps: torch.Tensor, told: Arguments
) -> torch.Tensor:
    """One step's loss as that script computes it, with the random numbers that bigdiff draws."""
    made = scheduler(told)
    noise = seeding.normal(0, "noise", POSITIONS, SHAPE)
    if told.noise_offset:
        noise = noise + told.noise_offset * seeding.normal(0, "offset_noise", POSITIONS, (2, 1, 1))
    mixed = noise
    if told.ip_noise_gamma:
        mixed = noise + told.ip_noise_gamma * seeding.normal(0, "input_perturbation", POSITIONS, SHAPE)
    predicted = unet(made.add_noise(latents, mixed, steps), steps, states).sample
    target = made.get_velocity(latents, noise, steps) if told.v_parameterization else noise
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none").mean([1, 2, 3])
    if told.min_snr_gamma:
        ratios = (made.alphas_cumprod.sqrt() / (1.0 - made.alphas_cumprod).sqrt()) ** 2
        snr = torch.stack([ratios[step] for step in steps])
        capped = torch.minimum(snr, torch.full_like(snr, told.min_snr_gamma))
        loss = loss * (capped / (snr + 1) if told.v_parameterization else capped / snr)
    return loss.mean()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_kohyas_loop(toy: Path, name: str) -> None:
    told = CASES[name]
    stage = load_stage(str(toy / "stage.yaml"), told.options)
    torch.manual_seed(0)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    latents, states = torch.randn(len(POSITIONS), *SHAPE), torch.randn(len(POSITIONS), 12, 16)
    noised = objective.build(stage.diffusion, 0, stage.batch.total, torch.device("cpu")).noised(latents, POSITIONS)
    with torch.no_grad():
        predicted = unet(noised.noisy, noised.timesteps, states).sample
        ours = (per_sample_loss(predicted, noised.target) * noised.weights).mean()
        theirs = kohya_loss(unet, latents, states, noised.timesteps, told)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-7)
