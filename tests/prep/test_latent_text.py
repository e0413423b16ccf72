from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from bigdiff.config.errors import RunError
from bigdiff.models import components
from bigdiff.models.encoders import text_states
from bigdiff.prep import latent_text
from bigdiff.prep.encoder import Encoder


@pytest.fixture
def encoder(encoder: Encoder, toy: Path) -> Encoder:
    return replace(encoder, text_encoder=components.load_text_encoder(str(toy / "text_encoder")))


def test_states_are_the_text_encoders_and_those_of_no_caption_have_a_file(encoder: Encoder) -> None:
    tokens = components.token_ids(encoder.tokenizer, ["a red circle", ""]).numpy().astype(np.uint16)
    found = latent_text.states(encoder, tokens)
    assert found is not None and encoder.text_encoder is not None
    with torch.no_grad():
        right = text_states(encoder.text_encoder, torch.from_numpy(tokens.astype(np.int64))).half()
    assert np.array_equal(found, right.numpy())
    empty = safetensors.numpy.load(latent_text.empty(encoder))
    assert np.array_equal(empty["tokens"], tokens[1])
    np.testing.assert_allclose(empty["states"].astype(float), found[1].astype(float), atol=1e-3)


def test_states_beyond_float16_are_refused(encoder: Encoder) -> None:
    text = encoder.text_encoder
    assert text is not None
    with torch.no_grad():
        text.get_submodule(
            "final_layer_norm" if hasattr(text, "final_layer_norm") else "text_model.final_layer_norm"
        ).bias.fill_(1e6)
    with pytest.raises(RunError, match="states beyond float16"):
        latent_text.states(encoder, np.zeros((2, 12), np.uint16))
    assert latent_text.states(replace(encoder, text_encoder=None), np.zeros((2, 12), np.uint16)) is None
