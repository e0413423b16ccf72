from pathlib import Path

import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser, build_denoiser


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


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(toy: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        stage = load_stage(str(toy / "stage.yaml"), [f"seed={seed}"])
        assert stage.model.text
        text = components.load_text_encoder(stage.model.text.encoder)
        return next(build_denoiser(stage, text).unet.parameters()).detach()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("train", "trained"), [("false", False), ("true", True)])
def test_the_text_encoder_learns_only_when_asked(toy: Path, train: str, trained: bool) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"model.text.train={train}"])
    assert stage.model.text
    text = components.load_text_encoder(stage.model.text.encoder)
    denoiser = build_denoiser(stage, text)
    names = denoiser.trained()
    assert any(name.startswith("unet.") for name in names)
    assert any(name.startswith("text_encoder.") for name in names) is trained
    assert denoiser.text_encoder is not None and denoiser.text_encoder.training is trained
