from pathlib import Path

import torch

from bigdiff.config.load import load_stage
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser


def test_it_is_the_unet_on_the_text_encoders_last_state(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    text = components.load_text_encoder(stage.model.text.encoder)
    noisy, timesteps, tokens = torch.randn(3, 2, 4, 4), torch.tensor([0, 10, 999]), torch.randint(0, 49408, (3, 12))
    expected = unet(noisy, timesteps, text(tokens).last_hidden_state).sample
    torch.testing.assert_close(Denoiser(unet, text, train_text=False)(noisy, timesteps, tokens), expected)


def test_gradients_reach_what_is_trained_and_nothing_else(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    for train_text in (False, True):
        unet = components.build_unet(stage.model.unet, stage.latent_size)
        text = components.load_text_encoder(stage.model.text.encoder)
        denoiser = Denoiser(unet, text, train_text)
        tokens = torch.randint(0, 49408, (2, 12))
        denoiser(torch.randn(2, 2, 4, 4), torch.tensor([1, 2]), tokens).pow(2).mean().backward()
        with_gradient = {name for name, weight in denoiser.named_parameters() if weight.grad is not None}
        assert with_gradient <= denoiser.trained().keys()
        assert any(name.startswith("text_encoder.") for name in with_gradient) is train_text
        assert all(name in with_gradient for name in denoiser.trained() if name.startswith("unet."))
