import json
from pathlib import Path

import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.models.network import network


def test_sd_v1_is_its_unet_and_clips_text_model() -> None:
    found = network(load_stage("512px"))
    assert sum(found.sizes) == 859_520_964
    assert found.frozen == 123_060_480
    assert len(found.sizes) == 686
    assert found.tokens
    assert "taken for 12 layers of 768" in found.notes[0]
    assert {one.device.type for one in found.denoiser.parameters()} == {"meta"}


def test_a_text_encoder_is_read_from_its_configuration(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "vocab_size": 100, "model_type": "clip_text_model"}))
    found = network(load_stage("quickstart-32px", [f"model.text.encoder={tmp_path}"]))
    assert found.tokens
    assert not found.notes
    assert found.frozen == sum(one.numel() for one in found.denoiser.text_encoder.parameters())  # type: ignore[union-attr]
    elsewhere = network(load_stage("quickstart-32px", ["model.text.encoder=nowhere"]))
    assert not elsewhere.tokens
    assert elsewhere.frozen == 0
    assert "left out" in elsewhere.notes[0]
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        network(load_stage("quickstart-32px", [f"model.text.encoder={tmp_path}"]))


def test_pictures_bring_the_autoencoder() -> None:
    found = network(load_stage("512px", ["data.latents=", "data.images=set"]))
    assert found.encoder is not None
    assert found.frozen == 123_060_480 + 34_163_592
    assert network(load_stage("512px")).encoder is None


def test_what_is_not_trained_is_not_among_the_sizes() -> None:
    found = network(load_stage("512px", ["model.frozen=[unet.down_blocks.*]"]))
    assert sum(found.sizes) + found.frozen == 859_520_964 + 123_060_480
    assert sum(found.sizes) < 859_520_964


def test_inputs_run_through_the_network_and_an_autoencoder_stage_is_refused() -> None:
    found = network(load_stage("quickstart-32px", ["model.text.encoder=nowhere"]))
    output = found.denoiser(*found.inputs(3, tokens=False))
    assert output.shape == (3, 16, 4, 4)
    assert output.device == torch.device("meta")
    with pytest.raises(UsageError, match="autoencoder"):
        network(load_stage("kl-f8"))
