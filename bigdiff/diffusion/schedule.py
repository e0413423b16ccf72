"""The forward process: betas, alphas_cumprod, and what a noisy latent, a velocity and a signal-to-noise ratio are."""

import torch

from bigdiff.config.schema import Diffusion


def alphas_cumprod(diffusion: Diffusion) -> torch.Tensor:
    """Product of (1 - beta_s) for s <= t, float64 [train_timesteps] (Ho et al. 2020, between eq. 3 and 4).

    `scaled_linear` is linear in sqrt(beta), the "linear" schedule of the latent-diffusion code. With
    `zero_terminal_snr` the last value is exactly 0.
    """
    cumulative = torch.cumprod(1.0 - _drawn_betas(diffusion), dim=0)
    return zero_terminal(cumulative) if diffusion.zero_terminal_snr else cumulative


def betas(diffusion: Diffusion) -> torch.Tensor:
    """beta_t, the variance of the noise that step t adds, float64 [train_timesteps], of the same process."""
    if not diffusion.zero_terminal_snr:
        return _drawn_betas(diffusion)
    cumulative = alphas_cumprod(diffusion)
    return 1.0 - cumulative / torch.cat((cumulative.new_ones(1), cumulative[:-1]))


def _drawn_betas(diffusion: Diffusion) -> torch.Tensor:
    steps, start, end = diffusion.train_timesteps, diffusion.beta_start, diffusion.beta_end
    if diffusion.beta_schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.linspace(start, end, steps, dtype=torch.float64)


def zero_terminal(cumulative: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha_bar) so that the first stays and the last is 0 (Lin et al. 2024, algorithm 1)."""
    roots = cumulative.sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


def signal_to_noise(cumulative: torch.Tensor) -> torch.Tensor:
    """SNR(t) = alpha_bar_t / (1 - alpha_bar_t), 0 where alpha_bar is (Kingma et al. 2021, eq. 2)."""
    return cumulative / (1.0 - cumulative)


def signal_and_noise(cumulative: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) for int64 `timesteps` [B], fp32 [B, 1, 1, 1]."""
    at = cumulative.to(timesteps.device)[timesteps].reshape(-1, 1, 1, 1)
    return at.sqrt().float(), (1.0 - at).sqrt().float()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, eq. 4); all fp32 [B, C, h, w]."""
    return signal * latents + sigma * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022, appendix D)."""
    return signal * noise - sigma * latents
