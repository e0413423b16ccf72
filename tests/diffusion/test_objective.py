from dataclasses import replace

import torch

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import objective
from bigdiff.diffusion.schedule import add_noise, signal_and_noise, velocity

CPU = torch.device("cpu")
LATENTS = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(100, 106)


def test_targets_fit_the_noisy_latents() -> None:
    eps = objective.build(Diffusion(), 3, CPU).noised(LATENTS, POSITIONS)
    signal, sigma = signal_and_noise(objective.alphas_cumprod(Diffusion()), eps.timesteps)
    torch.testing.assert_close(eps.noisy, add_noise(LATENTS, eps.target, signal, sigma))
    v = objective.build(Diffusion(prediction_type="v_prediction"), 3, CPU).noised(LATENTS, POSITIONS)
    assert torch.equal(v.noisy, eps.noisy)
    torch.testing.assert_close(v.target, velocity(LATENTS, eps.target, signal, sigma))


def test_draws_follow_the_position_not_the_batch() -> None:
    ours = objective.build(Diffusion(), 3, CPU)
    whole = ours.noised(LATENTS, POSITIONS)
    back = ours.noised(LATENTS.flip(0), POSITIONS.flip(0))
    assert torch.equal(back.noisy.flip(0), whole.noisy)
    assert torch.equal(back.timesteps.flip(0), whole.timesteps)
    other = replace(ours, seed=4).noised(LATENTS, POSITIONS)
    assert not torch.equal(other.target, whole.target)


def test_timesteps_cover_the_schedule() -> None:
    short = objective.build(Diffusion(train_timesteps=10), 0, CPU)
    timesteps = short.noised(torch.zeros(1000, 1, 1, 1), torch.arange(1000)).timesteps
    assert sorted(set(timesteps.tolist())) == list(range(10))


def test_loss_is_a_mean_per_sample_in_fp32() -> None:
    prediction = torch.ones(2, 4, 3, 3, dtype=torch.bfloat16)
    target = torch.stack([torch.zeros(4, 3, 3), torch.full((4, 3, 3), 3.0)])
    losses = objective.per_sample_loss(prediction, target)
    assert losses.dtype == torch.float32
    assert losses.tolist() == [1.0, 4.0]
