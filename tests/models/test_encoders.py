from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from bigdiff.models import components, encoders


@pytest.mark.parametrize("spread", [1.0, 40.0])  # 40: log-variances beyond the clamp on both sides
def test_a_posterior_sample_is_what_diffusers_draws(spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    moments = torch.randn(3, 8, 4, 4, generator=generator) * spread
    expected = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(7)) * 0.18215
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(encoders.posterior_sample(moments, noise, 0.18215), expected)


def test_without_noise_the_sample_is_the_scaled_mean() -> None:
    moments = torch.randn(2, 6, 4, 4)
    assert torch.equal(encoders.posterior_sample(moments, torch.zeros(2, 3, 4, 4), 2.0), moments[:, :3] * 2.0)


def test_moments_and_decode_are_the_autoencoders_own(toy: Path) -> None:
    vae = components.load_vae(str(toy / "vae"))
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    moments = encoders.moments(vae, pixels)
    posterior = vae.encode(pixels).latent_dist
    assert moments.shape == (2, 4, 4, 4)
    assert torch.equal(moments[:, :2], posterior.mean)
    assert torch.equal(moments[:, 2:].clamp(-30, 20), posterior.logvar)
    scaled = posterior.mean * vae.config["scaling_factor"]
    assert torch.allclose(encoders.decode(vae, scaled), vae.decode(posterior.mean).sample.clamp(-1, 1), atol=1e-6)
    assert encoders.decode(vae, scaled * 1e6).abs().max() <= 1


def test_text_states_are_normed_and_causal(toy: Path) -> None:
    model = components.load_text_encoder(str(toy / "text_encoder"))
    tokenizer = components.load_tokenizer(str(toy / "tokenizer"), 12)
    ids = components.token_ids(tokenizer, ["a red circle", "a red square"])
    states = encoders.text_states(model, ids)
    assert states.shape == (2, 12, 16)
    hidden = model(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(states, model.final_layer_norm(hidden), atol=1e-6)
    assert torch.allclose(states[0, :3], states[1, :3], atol=1e-6)  # the words before the difference
    assert not torch.allclose(states[0, 3:], states[1, 3:], atol=1e-3)
