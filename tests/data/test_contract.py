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
