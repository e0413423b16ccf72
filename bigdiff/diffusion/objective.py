"""From clean latents and sample positions to what the network sees, what it must predict and how much that counts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import timesteps, weighting
from bigdiff.diffusion.schedule import add_noise, alphas_cumprod, signal_and_noise, velocity
from bigdiff.diffusion.timesteps import Timesteps
from bigdiff.runtime.seeding import normal


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """One micro-batch on its way into the network; fp32 [B, C, h, w], timesteps int64 [B], weights fp32 [B]."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor  # of each sample's mean squared error


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted loss E[w(t) |target - prediction|^2], for w = 1 and eps the simple loss of Ho et al. 2020, eq. 14.

    All draws depend on (seed, position) alone.
    """

    diffusion: Diffusion
    seed: int
    timesteps: Timesteps
    cumulative: torch.Tensor  # alphas_cumprod, float64 [train_timesteps], on the training device
    weights: torch.Tensor  # fp32 [train_timesteps], there too

    def noised(self, latents: torch.Tensor, positions: torch.Tensor) -> Noised:
        """Draw a timestep and noise for each of the scaled `latents` [B, C, h, w] at int64 `positions` [B].

        The network's input may be perturbed; its target is that of the unperturbed noise (Ning et al. 2023, section 4).
        """
        steps = self.timesteps.draw(self.seed, positions)
        noise = self.noise(latents, positions)
        signal, sigma = signal_and_noise(self.cumulative, steps)
        return Noised(
            noisy=add_noise(latents, self.perturbed(noise, positions), signal, sigma),
            timesteps=steps,
            target=self.target(latents, noise, signal, sigma),
            weights=self.weights[steps],
        )

    def noise(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Standard normal noise, plus `offset_noise` times one normal number per sample and channel.

        The sum is the noise: it is added to the latents, and eps and v are made of it, as in diffusers and kohya (the
        idea is CrossLabs', "Diffusion with offset noise", 2023).
        """
        noise = normal(self.seed, "noise", positions, tuple(latents.shape[1:]))
        if self.diffusion.offset_noise:
            offset = normal(self.seed, "offset_noise", positions, (latents.shape[1], 1, 1))
            noise = noise + self.diffusion.offset_noise * offset
        return noise

    def perturbed(self, noise: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """noise + `input_perturbation` xi with xi standard normal (Ning et al. 2023, section 4)."""
        if not self.diffusion.input_perturbation:
            return noise
        more = normal(self.seed, "input_perturbation", positions, tuple(noise.shape[1:]))
        return noise + self.diffusion.input_perturbation * more

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """What the network must predict: eps, v or x_0."""
        if self.diffusion.prediction_type == "epsilon":
            return noise
        if self.diffusion.prediction_type == "v_prediction":
            return velocity(latents, noise, signal, sigma)
        return latents


def build(diffusion: Diffusion, seed: int, total: int, device: torch.device) -> Objective:
    """The objective of a stage with global batches of `total` samples, on `device`."""
    cumulative = alphas_cumprod(diffusion)
    return Objective(
        diffusion=diffusion,
        seed=seed,
        timesteps=timesteps.build(diffusion, total, device),
        cumulative=cumulative.to(device),
        weights=weighting.weights(diffusion, cumulative).float().to(device),
    )


def per_sample_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, unweighted, fp32 [B], whatever the prediction's type."""
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))
