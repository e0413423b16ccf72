from importlib.resources import files
from pathlib import Path

import pytest
import torch

from bigdiff.models import components
from bigdiff.models.encoders import text_states
from bigdiff.quickstart import scenes, train_clip
from bigdiff.quickstart.components import MAX_LENGTH, write_tokenizer

VALUES = {
    "shape": scenes.SHAPES,
    "colour": scenes.COLOURS,
    "background": scenes.BACKGROUNDS,
    "place": tuple(scenes.PLACES),
}


@pytest.mark.parametrize("attribute", sorted(VALUES))
def test_the_shipped_text_model_tells_held_out_captions_apart(attribute: str, tmp_path: Path) -> None:
    """A linear probe on the last state, fitted on training captions, reads captions of held-out combinations."""
    write_tokenizer(tmp_path, MAX_LENGTH)
    tokenizer = components.load_tokenizer(str(tmp_path), MAX_LENGTH)
    text = components.load_text_encoder(str(files("bigdiff.quickstart") / "text_encoder"))
    training = [(index, scenes.scene(0, index)) for index in range(3000)]
    training = [(index, scene) for index, scene in training if len(scene.things) == 1]
    test = list(enumerate(scenes.held_out_scenes(270, seed=4)))

    def read(numbered: list[tuple[int, scenes.Scene]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        captions = [scenes.caption(scene, seed, index) for index, scene in numbered]
        with torch.inference_mode():
            states = text_states(text, components.token_ids(tokenizer, captions))[:, -1]
        named = [VALUES[attribute].index(getattr(scenes.combination(scene), attribute)) for _, scene in numbered]
        return torch.cat((states, torch.ones(len(states), 1)), dim=1), torch.tensor(named)

    inputs, names = read(training, 0)
    weights = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(names).float()).solution
    asked, truth = read(test, 4)
    assert float(((asked @ weights).argmax(dim=1) == truth).float().mean()) >= 0.95


def test_the_towers_learn_and_unused_words_stay_silent() -> None:
    plan = train_clip.Plan(scenes=64, steps=40, batch=16, warmup=5)
    tokens = torch.full((64, MAX_LENGTH), 49407)
    tokens[:, 0], tokens[:, 1] = 49406, torch.arange(64) % 4 + 300
    shown = (torch.arange(64) % 4 * 60).to(torch.uint8)[:, None, None, None].expand(64, 3, 12, 12)
    towers, again = (train_clip.train(plan, tokens, shown) for _ in range(2))
    assert components.weights_sha256(towers) == components.weights_sha256(again)
    with torch.inference_mode():
        cosines = towers(tokens[:4], shown[:4].float() / 127.5 - 1)
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert float(towers.text.get_input_embeddings().weight[5000].abs().sum()) == 0.0
