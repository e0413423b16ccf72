from dataclasses import replace

import pytest
import torch

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import objective
from bigdiff.diffusion.objective import Objective
from bigdiff.diffusion.schedule import add_noise, signal_and_noise, velocity
from bigdiff.runtime import seeding

CPU = torch.device("cpu")
LATENTS = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(100, 106)


def built(diffusion: Diffusion, seed: int = 3) -> Objective:
    return objective.build(diffusion, seed, 64, CPU)


def test_targets_fit_the_noisy_latents() -> None:
    eps = built(Diffusion()).noised(LATENTS, POSITIONS)
    signal, sigma = signal_and_noise(objective.alphas_cumprod(Diffusion()), eps.timesteps)
    torch.testing.assert_close(eps.noisy, add_noise(LATENTS, eps.target, signal, sigma))
    v = built(Diffusion(prediction_type="v_prediction")).noised(LATENTS, POSITIONS)
    assert torch.equal(v.noisy, eps.noisy)
    torch.testing.assert_close(v.target, velocity(LATENTS, eps.target, signal, sigma))
    clean = built(Diffusion(prediction_type="sample")).noised(LATENTS, POSITIONS)
    assert torch.equal(clean.noisy, eps.noisy)
    assert torch.equal(clean.target, LATENTS)


def test_the_defaults_are_the_simple_loss_and_draw_nothing_more() -> None:
    plain = built(Diffusion()).noised(LATENTS, POSITIONS)
    assert torch.equal(plain.target, seeding.normal(3, "noise", POSITIONS, (4, 3, 3)))
    assert plain.weights.eq(1).all()
    assert plain.weights.dtype == torch.float32


def test_offset_noise_is_a_constant_per_sample_and_channel_in_input_and_target() -> None:
    plain = built(Diffusion()).noised(LATENTS, POSITIONS)
    offset = built(Diffusion(offset_noise=0.1)).noised(LATENTS, POSITIONS)
    added = offset.target - plain.target
    expected = 0.1 * seeding.normal(3, "offset_noise", POSITIONS, (4, 1, 1))
    torch.testing.assert_close(added, expected.expand_as(added), rtol=0, atol=1e-6)
    assert len(torch.unique(expected)) == expected.numel()
    _, sigma = signal_and_noise(objective.alphas_cumprod(Diffusion()), plain.timesteps)
    torch.testing.assert_close(offset.noisy - plain.noisy, sigma * added, rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_input_perturbation_changes_the_input_alone(target: str) -> None:
    diffusion = Diffusion(prediction_type=target, offset_noise=0.05)  # type: ignore[arg-type]
    plain = built(diffusion).noised(LATENTS, POSITIONS)
    moved = built(replace(diffusion, input_perturbation=0.1)).noised(LATENTS, POSITIONS)
    assert torch.equal(moved.target, plain.target)
    _, sigma = signal_and_noise(objective.alphas_cumprod(Diffusion()), plain.timesteps)
    added = 0.1 * sigma * seeding.normal(3, "input_perturbation", POSITIONS, (4, 3, 3))
    torch.testing.assert_close(moved.noisy - plain.noisy, added, rtol=0, atol=1e-6)


def test_at_zero_snr_the_input_is_the_noise_and_v_is_minus_the_latents() -> None:
    zero = Diffusion(prediction_type="v_prediction", zero_terminal_snr=True, train_timesteps=2)
    noised = built(zero).noised(LATENTS, POSITIONS)
    last = noised.timesteps == 1
    assert 0 < int(last.sum()) < len(last)
    assert torch.equal(noised.noisy[last], seeding.normal(3, "noise", POSITIONS[last], (4, 3, 3)))
    assert torch.equal(noised.target[last], -LATENTS[last])


def test_each_sample_has_the_weight_of_its_timestep() -> None:
    weighted = built(Diffusion(weighting="min_snr", snr_gamma=5.0))
    noised = weighted.noised(LATENTS, POSITIONS)
    cumulative = objective.alphas_cumprod(Diffusion())[noised.timesteps]
    snr = cumulative / (1 - cumulative)
    torch.testing.assert_close(noised.weights, (snr.clamp(max=5.0) / snr).float())


def test_draws_follow_the_position_not_the_batch() -> None:
    ours = built(Diffusion())
    whole = ours.noised(LATENTS, POSITIONS)
    back = ours.noised(LATENTS.flip(0), POSITIONS.flip(0))
    assert torch.equal(back.noisy.flip(0), whole.noisy)
    assert torch.equal(back.timesteps.flip(0), whole.timesteps)
    other = replace(ours, seed=4).noised(LATENTS, POSITIONS)
    assert not torch.equal(other.target, whole.target)


def test_timesteps_cover_the_schedule() -> None:
    short = built(Diffusion(train_timesteps=10), 0)
    timesteps = short.noised(torch.zeros(1000, 1, 1, 1), torch.arange(1000)).timesteps
    assert sorted(set(timesteps.tolist())) == list(range(10))


def test_loss_is_a_mean_per_sample_in_fp32() -> None:
    prediction = torch.ones(2, 4, 3, 3, dtype=torch.bfloat16)
    target = torch.stack([torch.zeros(4, 3, 3), torch.full((4, 3, 3), 3.0)])
    losses = objective.per_sample_loss(prediction, target)
    assert losses.dtype == torch.float32
    assert losses.tolist() == [1.0, 4.0]
