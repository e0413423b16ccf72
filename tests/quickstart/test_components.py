import hashlib
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from bigdiff.models import components as models
from bigdiff.models.encoders import text_states
from bigdiff.quickstart import components, scenes

CAPTIONS = (
    "",
    "a red circle on a blue background at the left",
    "At the LEFT, a Red CIRCLE on Blue!",
    "it's the painter's dog; they've got 2 (two) cats -- 100% real?",
    "hello   world\t\nnew line",
    "smile \U0001f642 and rocket\U0001f680\U0001f680, caf\u00e9 \u4e2d\u6587 \u041f\u0440\u0438\u0432\u0435\u0442",
    "http://example.org/a_b-c.png #tag @name",
    "antidisestablishmentarianism " * 40,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("components")
    components.write_components(made)
    return made


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("words")
    components.write_tokenizer(made, components.MAX_LENGTH)
    return str(made)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("length", [components.MAX_LENGTH, 77])
def test_ids_are_those_of_open_clip(words: str, length: int) -> None:
    tokenizer = models.load_tokenizer(words, length)
    ours = models.token_ids(tokenizer, list(CAPTIONS))
    theirs = SimpleTokenizer()(list(CAPTIONS), length)
    for mine, other in zip(ours.tolist(), theirs.tolist(), strict=True):
        end = other.index(49407)
        assert mine[: end + 1] == other[: end + 1]
        assert set(mine[end:]) == {49407}  # SD pads with the end mark, open_clip with 0


def test_every_caption_of_the_scenes_fits(words: str) -> None:
    tokenizer = models.load_tokenizer(words, 77)
    captions = [scenes.caption(scenes.scene(0, index), 0, index) for index in range(500)]
    ends = models.token_ids(tokenizer, captions).eq(49407).int().argmax(dim=1)
    assert int(ends.max()) < components.MAX_LENGTH


def test_writing_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    components.write_components(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def test_the_text_model_knows_the_scenes_words_and_no_others(folder: Path) -> None:
    text = models.load_text_encoder(str(folder / "text_encoder"))
    tokenizer = models.load_tokenizer(str(folder / "tokenizer"), components.MAX_LENGTH)
    known = models.token_ids(tokenizer, ["a red circle on a blue background at the left"])[0, 1:-1]
    embedding = text.get_input_embeddings().weight
    assert bool((embedding[known].abs().sum(dim=1) > 0).all())
    stranger = models.token_ids(tokenizer, ["zebra"])[0, 1]
    assert float(embedding[stranger].abs().sum()) == 0.0
    said = ["a red circle on a blue background at the left", "a red circle on a blue background at the right"]
    first, second = text_states(text, models.token_ids(tokenizer, said))
    assert float((first[-1] - second[-1]).norm()) > 1.0


def test_the_parts_load_and_fit_each_other(folder: Path) -> None:
    vae = models.load_vae(str(folder / "vae"))
    assert 2 ** (len(vae.config["block_out_channels"]) - 1) == 8
    text = models.load_text_encoder(str(folder / "text_encoder"))
    tokenizer = models.load_tokenizer(str(folder / "tokenizer"), components.MAX_LENGTH)
    states = text_states(text, models.token_ids(tokenizer, ["a red circle", ""]))
    assert states.shape == (2, components.MAX_LENGTH, 64)
    assert text.config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 49407
    assert sorted(path.parent.name for path in folder.rglob("*.safetensors")) == ["text_encoder", "vae"]
    assert not list(folder.rglob("*.bin"))
