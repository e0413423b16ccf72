import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from triton_runs import interpreted

from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import CLIP_MODEL
from bigdiff.models.clip import Clip, Named, load_clip
from bigdiff.prep.scorers.golden import pattern

CPU = torch.device("cpu")
SIZES = [(640, 480), (50, 333), (32, 32), (225, 224), (17, 20)]


def loaded(source: str, model: str = CLIP_MODEL, for_heads: bool = True) -> Clip:
    return load_clip(source, model, for_heads=for_heads, device=CPU)


@pytest.fixture
def clip(tiny_clip: str) -> Clip:
    return loaded(tiny_clip)


@pytest.fixture
def small_model(tiny_clip: str, tmp_path: Path) -> str:
    """open_clip's name of a model as `tiny_clip` is, for its weights to be given as a file."""
    config = Path(tiny_clip.removeprefix("local-dir:")) / "open_clip_config.json"
    (tmp_path / "bigdiff-tiny-quickgelu.json").write_text(json.dumps(json.loads(config.read_text())["model_cfg"]))
    open_clip.add_model_config(tmp_path)
    return "bigdiff-tiny-quickgelu"


def test_pixels_and_features_are_open_clips(clip: Clip, tiny_clip: str) -> None:
    network, _, transform = open_clip.create_model_and_transforms(tiny_clip)
    network.eval()
    tokens = open_clip.get_tokenizer(tiny_clip)(["a red circle", "word " * 200])
    pictures = [pattern(*size) for size in SIZES]
    right = torch.stack([transform(picture) for picture in pictures])
    torch.testing.assert_close(clip.pixels(pictures), right, rtol=0, atol=0)
    with torch.no_grad():
        images, texts = network.encode_image(right), network.encode_text(tokens)
    images, texts = images / images.norm(dim=1, keepdim=True), texts / texts.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(clip.image_features(pictures), images, atol=1e-5)
    np.testing.assert_allclose(clip.text_features(["a red circle", "word " * 200]), texts, atol=1e-5)


def test_pixels_are_a_bicubic_resize_of_the_shorter_side_and_the_centre() -> None:
    """By Pillow and numpy alone, at the size of L/14."""
    transform = open_clip.image_transform(224, is_train=False)
    picture = pattern(641, 479)
    resized = picture.resize((int(224 * 641 / 479), 224), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    values = np.asarray(resized.crop((left, 0, left + 224, 224)), np.float32) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(transform(picture).permute(1, 2, 0), (values - mean) / std, atol=1e-5)


def test_a_true_clip_passes_and_one_with_random_weights_does_not(clip: Clip) -> None:
    clip.self_test()
    torch.manual_seed(0)
    nn.init.normal_(clip.network.text_projection)
    with pytest.raises(UsageError, match=r"discs are taken for .* circles\): refusing"):
        clip.self_test()


def exchanged_channels(clip: Clip) -> None:
    right = clip.transform
    clip.transform = lambda picture: right(Image.fromarray(np.asarray(picture)[:, :, ::-1].copy()))


def exchanged_after_the_transform(clip: Clip) -> None:
    """The network alone sees blue for red."""
    right = clip.network.encode_image
    clip.network.encode_image = lambda pixels, normalize: right(pixels.flip(1), normalize=normalize)


def squashed(clip: Clip) -> None:
    right = clip.transform
    clip.transform = lambda picture: right(picture.resize((224, 224)))


def not_normalised(clip: Clip) -> None:
    for kind in ("encode_image", "encode_text"):
        right = getattr(clip.network, kind)
        setattr(clip.network, kind, lambda values, normalize, ask=right: 10 * ask(values, normalize=False))


def gelu(clip: Clip) -> None:
    clip.network.visual.transformer.resblocks[1].mlp.gelu = nn.GELU()


def gelu_for_text(clip: Clip) -> None:
    clip.network.transformer.resblocks[0].mlp.gelu = nn.GELU()


def captions_in_another_order(clip: Clip) -> None:
    right = clip.tokenizer
    clip.tokenizer = lambda captions: right(captions[::-1])


def of_the_batch(clip: Clip) -> None:
    right = clip.network.encode_image
    clip.network.encode_image = lambda pixels, normalize: right(pixels - 0.1 * pixels.mean(0), normalize=normalize)


def other_mean(clip: Clip) -> None:
    clip.preprocessing.mean = (0.5, 0.5, 0.5)


BREAKS: dict[Callable[[Clip], None], str] = {
    exchanged_channels: "its channels are not red, green, blue",
    exchanged_after_the_transform: "red, green and blue discs are taken for blue, green, red circles",
    squashed: "the centre of a picture is not cut out",
    not_normalised: "picture embeddings have norms .* in place of 1",
    gelu: "activation is not QuickGELU",
    gelu_for_text: "activation is not QuickGELU",
    captions_in_another_order: "taken for blue, green, red circles",
    of_the_batch: "depends on what else is in the batch",
    other_mean: "mean and deviation of OpenAI's",
}


@pytest.mark.parametrize("harm", BREAKS, ids=lambda value: value.__name__)
def test_a_broken_clip_is_refused(clip: Clip, harm: Callable[[Clip], None]) -> None:
    harm(clip)
    with pytest.raises(UsageError, match=BREAKS[harm]):
        clip.self_test()


def test_fp16_moves_embeddings_a_little_and_says_so(clip: Clip, tiny_clip: str) -> None:
    half = load_clip(tiny_clip, CLIP_MODEL, for_heads=True, device=CPU, half=True)
    half.self_test()
    assert half.fingerprint == f"{clip.fingerprint}, fp16"
    pictures, captions = [pattern(*size) for size in SIZES], ["a red circle", "an old castle"]
    both = [(one.image_features(pictures), one.text_features(captions)) for one in (half, clip)]
    for given, right in zip(*both, strict=True):
        assert given.dtype == np.float32
        assert 1e-5 < np.linalg.norm(given - right, axis=1).max() < 2e-3
        np.testing.assert_allclose(np.linalg.norm(given.astype(float), axis=1), 1, atol=1e-6)
    with torch.no_grad():
        half.network.visual.proj.add_(0.01 * torch.randn(half.network.visual.proj.shape).half())
    with pytest.raises(UsageError, match=r"fp16 moves picture embeddings by .*, more than 0\.005: use fp32"):
        half.self_test()


FUSED = """
import sys
sys.path[:0] = ["tests/models", "tests/parts"]
from test_clip import CLIP_MODEL, CPU, SIZES, load_clip, np, pattern
half = load_clip(sys.argv[1], CLIP_MODEL, for_heads=True, device=CPU, half=True)
pictures, captions = [pattern(*size) for size in SIZES], ["a red circle", "an old castle"]
plain, name = (half.image_features(pictures), half.text_features(captions)), half.fingerprint
assert half.fuse() == "" and half.fingerprint == f"{name}, fused"
half.self_test()
for given, right in zip((half.image_features(pictures), half.text_features(captions)), plain, strict=True):
    assert 0 < np.linalg.norm(given - right, axis=1).max() < 2e-3
"""


def test_a_fused_activation_gives_nearly_the_same_and_says_so(tiny_clip: str) -> None:
    interpreted(FUSED, tiny_clip)


def test_without_kernels_the_activation_stays(tiny_clip: str) -> None:
    half = load_clip(tiny_clip, CLIP_MODEL, for_heads=True, device=CPU, half=True)
    before, name = half.text_features(["a red circle"]), half.fingerprint
    assert half.fuse().startswith("on cpu it does not run (")
    assert half.fingerprint == name and np.array_equal(half.text_features(["a red circle"]), before)


def test_a_model_that_is_built_with_gelu_is_refused_for_the_heads(tiny_clip: str, tmp_path: Path) -> None:
    """The trap: weights load without a word into open_clip's ViT-L-14, which computes with GELU."""
    folder = Path(tiny_clip.removeprefix("local-dir:"))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = (folder / "open_clip_config.json").read_text().replace('"quick_gelu": true', '"quick_gelu": false')
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(UsageError, match="activation is not QuickGELU, which OpenAI's weights need"):
        loaded(f"local-dir:{tmp_path}").self_test()
    other = loaded(f"local-dir:{tmp_path}", for_heads=False)
    other.self_test()
    assert other.fuse() == "its activation is not QuickGELU"
    assert other.fingerprint == loaded(tiny_clip).fingerprint.replace("quickgelu", "gelu")


def test_a_file_gives_the_same_clip_in_every_form(tiny_clip: str, small_model: str, tmp_path: Path, clip: Clip) -> None:
    file = Path(tiny_clip.removeprefix("local-dir:")) / "model.safetensors"
    extra = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    torch.save({"state_dict": {**load_file(file), **extra}}, tmp_path / "as-openai.pt")
    picture = [pattern(60, 40)]
    for name in (str(file), str(tmp_path / "as-openai.pt")):
        found = loaded(name, small_model)
        found.self_test()
        np.testing.assert_array_equal(found.image_features(picture), clip.image_features(picture))
        assert found.fingerprint == clip.fingerprint  # wherever they came from


def test_weights_of_another_resolution_are_not_stretched(tiny_clip: str, small_model: str, tmp_path: Path) -> None:
    """open_clip's own loader would interpolate the positions in silence."""
    state = load_file(Path(tiny_clip.removeprefix("local-dir:")) / "model.safetensors")
    state["visual.positional_embedding"] = torch.zeros(50, 64)
    torch.save(state, tmp_path / "larger.pt")
    with pytest.raises(UsageError, match=r"has visual.positional_embedding of shape \[50, 64\]"):
        loaded(str(tmp_path / "larger.pt"), small_model)


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("absent.safetensors", CLIP_MODEL, "there is no such file, and ViT-L-14-quickgelu has no weights of that name"),
        ("openai", "ViT-XXL", "is not one of open_clip's models"),
        ("openai", "ViT-L-14", "another activation than ViT-L-14 has: set score.clip_model=ViT-L-14-quickgelu"),
        ("laion2b_s32b_b82k", CLIP_MODEL, "has no weights of that name"),
        ("local-dir:/nowhere", CLIP_MODEL, "score.clip=local-dir:/nowhere cannot be loaded"),
    ],
)
def test_weights_that_are_not_there_are_one_sentence(source: str, model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loaded(source, model)


def test_a_folder_without_weights_is_refused(tiny_clip: str, tmp_path: Path) -> None:
    config = Path(tiny_clip.removeprefix("local-dir:")) / "open_clip_config.json"
    (tmp_path / "open_clip_config.json").write_text(config.read_text())
    with pytest.raises(UsageError, match="cannot be loaded"):
        loaded(f"local-dir:{tmp_path}")


def test_other_weights_have_another_fingerprint(tiny_clip: str, clip: Clip) -> None:
    changed = loaded(tiny_clip)
    assert changed.fingerprint == clip.fingerprint
    changed.network.logit_scale += 1
    again = Clip(changed.network, tiny_clip, for_heads=True, device=CPU)
    assert again.fingerprint != clip.fingerprint
    assert tiny_clip.removeprefix("local-dir:") not in clip.fingerprint


def test_complaints_are_in_the_words_of_the_door_that_loads_it(tmp_path: Path) -> None:
    named = Named(who="--clip", source="--clip", model="--clip-model")
    for source, model, message in (
        ("absent.pt", CLIP_MODEL, r"^--clip=absent\.pt: there is no such file"),
        ("absent.pt", "ViT-XXL", r"^--clip-model=ViT-XXL is not one"),
    ):
        with pytest.raises(UsageError, match=message):
            load_clip(source, model, for_heads=False, device=CPU, named=named)
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"^--clip: weights file .*empty\.pt cannot be read"):
        load_clip(str(tmp_path / "empty.pt"), "ViT-B-32-quickgelu", for_heads=False, device=CPU, named=named)
