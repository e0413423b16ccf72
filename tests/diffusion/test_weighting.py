from dataclasses import replace
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import weighting
from bigdiff.diffusion.schedule import add_noise, alphas_cumprod, velocity

TARGETS = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = {
    "min_snr": Diffusion(weighting="min_snr", snr_gamma=5.0),
    "p2": Diffusion(weighting="p2", p2_gamma=0.5, p2_k=1.0),
    "edm": Diffusion(weighting="edm", sigma_data=0.7),
}


def of(diffusion: Diffusion, target: str, zero: bool = False) -> torch.Tensor:
    chosen = replace(diffusion, prediction_type=target, zero_terminal_snr=zero)  # type: ignore[arg-type]
    return weighting.weights(chosen, alphas_cumprod(chosen))


def test_every_weighting_is_tested() -> None:
    assert {"constant", *WEIGHTINGS} == set(get_args(Diffusion.__annotations__["weighting"]))


@pytest.mark.parametrize("target", TARGETS)
def test_constant_is_one(target: str) -> None:
    assert of(Diffusion(), target).eq(1).all()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("zero", [False, True])
def test_one_denoiser_has_one_loss_whatever_its_target(name: str, zero: bool) -> None:
    """The weighted errors of the same guess at x_0, told as x_0, v or eps, are equal at every timestep."""
    cumulative = alphas_cumprod(Diffusion(zero_terminal_snr=zero))
    generator = torch.Generator().manual_seed(0)
    latents, noise, wrong = torch.randn(3, 1000, 4, 2, 2, generator=generator, dtype=torch.float64)
    guess = latents + 0.1 * wrong
    signal, sigma = cumulative.sqrt().reshape(-1, 1, 1, 1), (1 - cumulative).sqrt().reshape(-1, 1, 1, 1)
    noisy = add_noise(latents, noise, signal, sigma)
    eps = (noisy - signal * guess) / sigma
    told = {"sample": (guess, latents), "epsilon": (eps, noise)}
    told["v_prediction"] = velocity(guess, eps, signal, sigma), velocity(latents, noise, signal, sigma)
    losses = {
        target: of(WEIGHTINGS[name], target, zero) * (predicted - wanted).pow(2).mean(dim=(1, 2, 3))
        for target, (predicted, wanted) in told.items()
        if not (zero and target == "epsilon")
    }
    for target in losses:
        torch.testing.assert_close(losses[target], losses["sample"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_with_zero_terminal_snr(name: str) -> None:
    for target in ("v_prediction", "sample"):
        weights = of(WEIGHTINGS[name], target, zero=True)
        assert torch.isfinite(weights).all()
        assert (weights[:-1] > 0).all()
        assert (weights[-1] > 0) == (name == "edm")  # the others count nothing where there is no signal


def test_min_snr_is_diffusers() -> None:
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    snr = compute_snr(ddpm, torch.arange(1000))
    capped = snr.clamp(max=5.0)
    for target, divisor in (("epsilon", snr), ("v_prediction", snr + 1), ("sample", torch.ones_like(snr))):
        ours = of(WEIGHTINGS["min_snr"], target)
        torch.testing.assert_close(ours.float(), capped / divisor, rtol=1e-4, atol=1e-7)


def test_p2_is_a_factor_on_the_eps_loss() -> None:
    cumulative = alphas_cumprod(Diffusion())
    for gamma, k in ((0.5, 1.0), (1.0, 1.0), (1.0, 0.3)):
        ours = of(Diffusion(weighting="p2", p2_gamma=gamma, p2_k=k), "epsilon")
        torch.testing.assert_close(ours, 1 / (k + cumulative / (1 - cumulative)) ** gamma)


def test_edm_is_its_loss_at_the_noise_level_of_the_timestep() -> None:
    spread = 0.7
    level = ((1 - alphas_cumprod(Diffusion())) / alphas_cumprod(Diffusion())).sqrt()
    theirs = (level**2 + spread**2) / (level * spread) ** 2
    torch.testing.assert_close(of(WEIGHTINGS["edm"], "sample"), theirs)
    # with sigma_data = 1 it is the v loss
    unit = of(Diffusion(weighting="edm", sigma_data=1.0), "v_prediction", zero=True)
    torch.testing.assert_close(unit, torch.ones_like(unit))


def test_the_limits_of_the_settings() -> None:
    everything = of(Diffusion(weighting="min_snr", snr_gamma=1e9), "epsilon")
    assert everything.eq(1).all()  # never capped: the plain eps loss
    flat = of(Diffusion(weighting="p2", p2_gamma=1e-9, p2_k=1.0), "epsilon")
    torch.testing.assert_close(flat, torch.ones_like(flat))
