import pytest
import torch
from diffusers import DDPMScheduler

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import schedule

CASES = [Diffusion(beta_schedule=name) for name in ("scaled_linear", "linear")]


def theirs(diffusion: Diffusion) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=diffusion.train_timesteps,
        beta_schedule=diffusion.beta_schedule,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
    )


@pytest.mark.parametrize("diffusion", CASES, ids=lambda case: case.beta_schedule)
def test_alphas_cumprod_is_diffusers(diffusion: Diffusion) -> None:
    ours = schedule.alphas_cumprod(diffusion)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs(diffusion).alphas_cumprod, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("diffusion", CASES, ids=lambda case: case.beta_schedule)
def test_noise_and_velocity_are_diffusers(diffusion: Diffusion) -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(8, 4, 6, 6), torch.randn(8, 4, 6, 6)
    timesteps = torch.tensor([0, 1, 10, 250, 500, 750, 998, 999])
    signal, sigma = schedule.signal_and_noise(schedule.alphas_cumprod(diffusion), timesteps)
    stock = theirs(diffusion)
    noisy = schedule.add_noise(latents, noise, signal, sigma)
    torch.testing.assert_close(noisy, stock.add_noise(latents, noise, timesteps), rtol=1e-5, atol=1e-5)
    velocity = schedule.velocity(latents, noise, signal, sigma)
    torch.testing.assert_close(velocity, stock.get_velocity(latents, noise, timesteps), rtol=1e-5, atol=1e-5)


def test_clean_latents_come_back_from_v() -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    signal, sigma = schedule.signal_and_noise(schedule.alphas_cumprod(Diffusion()), torch.tensor([5, 500, 999]))
    noisy = schedule.add_noise(latents, noise, signal, sigma)
    v = schedule.velocity(latents, noise, signal, sigma)
    torch.testing.assert_close(signal * noisy - sigma * v, latents, rtol=1e-5, atol=1e-5)
