"""From clean latents and sample positions to what the network sees and what it must predict."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion.schedule import add_noise, alphas_cumprod, signal_and_noise, velocity
from bigdiff.runtime.seeding import integers, normal


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """One micro-batch on its way into the network; fp32 [B, C, h, w], timesteps int64 [B]."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The simple loss of Ho et al. 2020 (eq. 14) for an eps or v target; draws depend on (seed, position) alone."""

    diffusion: Diffusion
    seed: int
    cumulative: torch.Tensor  # alphas_cumprod, float64 [train_timesteps], on the training device

    def noised(self, latents: torch.Tensor, positions: torch.Tensor) -> Noised:
        """Draw a timestep and noise for each of the scaled `latents` [B, C, h, w] at int64 `positions` [B]."""
        timesteps = integers(self.seed, "timestep", positions, self.diffusion.train_timesteps)
        noise = normal(self.seed, "noise", positions, tuple(latents.shape[1:]))
        signal, sigma = signal_and_noise(self.cumulative, timesteps)
        noisy = add_noise(latents, noise, signal, sigma)
        is_v = self.diffusion.prediction_type == "v_prediction"
        target = velocity(latents, noise, signal, sigma) if is_v else noise
        return Noised(noisy=noisy, timesteps=timesteps, target=target)


def build(diffusion: Diffusion, seed: int, device: torch.device) -> Objective:
    """The objective of a stage on `device`."""
    return Objective(diffusion=diffusion, seed=seed, cumulative=alphas_cumprod(diffusion).to(device))


def per_sample_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, fp32 [B], whatever the prediction's type."""
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))
