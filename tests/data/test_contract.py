import json
from dataclasses import replace

import pytest

from bigdiff.data.contract import LatentContract
from bigdiff.data.manifest import differences

CONTRACT = LatentContract(
    vae_sha256="a" * 64,
    vae_scaling_factor=0.18215,
    vae_factor=8,
    latent_channels=4,
    resolution=512,
    tokenizer_sha256="b" * 64,
    empty_tokens=(49406, 49407, 49407),
)


def test_shape_and_length_follow() -> None:
    lines = CONTRACT.lines()
    assert lines["shape"] == [8, 64, 64]
    assert lines["text_length"] == 3
    assert json.loads(json.dumps(lines)) == lines
    assert differences(lines, CONTRACT.lines()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"vae_sha256": "c" * 64},
        {"vae_scaling_factor": 1.0},
        {"pixel_range": "[0, 1]"},
        {"tokenizer_sha256": "c" * 64},
        {"crop": "random"},
    ],
)
def test_each_line_that_differs_is_named(change: dict[str, object]) -> None:
    other = replace(CONTRACT, **change)  # type: ignore[arg-type]
    (sentence,) = differences(other.lines(), CONTRACT.lines())
    key, value = next(iter(change.items()))
    assert sentence.startswith(key)
    assert repr(value) in sentence


def test_what_is_off_has_no_line_and_what_is_on_its_own() -> None:
    plain = CONTRACT.lines()
    assert plain["mirror"] is False and not {"text_states", "text_encoder_sha256", "buckets", "crops"} & set(plain)
    on = replace(CONTRACT, stored="mean", mirror="stored", text_states=768, text_encoder_sha256="d" * 64).lines()
    assert differences(plain, on)[0].startswith("mirror is False in the set, 'stored' is needed")
    assert (on["shape"], on["text_states"], on["text_encoder_sha256"]) == ([4, 64, 64], 768, "d" * 64)
    assert json.loads(json.dumps(on)) == on
    boxed = replace(CONTRACT, crops=3).lines()
    assert (boxed.pop("crops"), boxed) == (3, plain), "what is read as moments is the centre still"


def test_buckets_have_shapes_in_place_of_a_resolution() -> None:
    lines = replace(CONTRACT, resolution=0, buckets=((640, 448), (448, 640))).lines()
    assert lines["buckets"] == {"640x448": [8, 56, 80], "448x640": [8, 80, 56]}
    assert "resolution" not in lines and "shape" not in lines
    assert json.loads(json.dumps(lines)) == lines
