import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import schedule

CASES = [
    Diffusion(beta_schedule=name, zero_terminal_snr=zero)
    for name in ("scaled_linear", "linear")
    for zero in (False, True)
]


def label(case: Diffusion) -> str:
    return f"{case.beta_schedule}{'-zero' if case.zero_terminal_snr else ''}"


def theirs(diffusion: Diffusion) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=diffusion.train_timesteps,
        beta_schedule=diffusion.beta_schedule,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
    )


@pytest.mark.parametrize("diffusion", CASES, ids=label)
def test_alphas_cumprod_is_diffusers(diffusion: Diffusion) -> None:
    ours = schedule.alphas_cumprod(diffusion)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs(diffusion).alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_zero_terminal_snr_is_algorithm_1() -> None:
    for name in ("scaled_linear", "linear"):
        plain = schedule.alphas_cumprod(Diffusion(beta_schedule=name))
        betas = 1 - plain / torch.cat((torch.ones(1, dtype=torch.float64), plain[:-1]))
        ours = schedule.zero_terminal(plain)
        torch.testing.assert_close(
            ours, torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0), rtol=1e-9, atol=1e-15
        )
        assert ours[-1] == 0.0
        assert float(ours[0]) == pytest.approx(float(plain[0]), rel=1e-12)
        assert (ours[1:] < ours[:-1]).all()


@pytest.mark.parametrize("diffusion", CASES, ids=label)
def test_signal_to_noise_is_diffusers(diffusion: Diffusion) -> None:
    ours = schedule.signal_to_noise(schedule.alphas_cumprod(diffusion))
    snr = compute_snr(theirs(diffusion), torch.arange(1000))
    torch.testing.assert_close(ours.float(), snr, rtol=3e-4, atol=1e-6)  # theirs is made of fp32 products
    assert (ours[-1] == 0) == diffusion.zero_terminal_snr


@pytest.mark.parametrize("diffusion", CASES, ids=label)
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


@pytest.mark.parametrize("diffusion", CASES, ids=label)
def test_betas_make_the_same_process(diffusion: Diffusion) -> None:
    ours = schedule.betas(diffusion)
    torch.testing.assert_close(
        torch.cumprod(1.0 - ours, dim=0), schedule.alphas_cumprod(diffusion), rtol=1e-9, atol=1e-15
    )
    torch.testing.assert_close(ours.float(), theirs(diffusion).betas, rtol=1e-3, atol=1e-7)  # theirs: fp32 quotients
    assert (ours[-1] == 1) == diffusion.zero_terminal_snr
