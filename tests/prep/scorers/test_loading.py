from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.scoring import WEIGHTED, Scorer, Scoring
from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.loading import Scorers, load

KINDS = (
    "aesthetic_v1",
    "aesthetic_v2",
    "watermark",
    "nsfw",
    "clip_similarity",
    "language",
    "caption_length",
    "sharpness",
    "flatness",
)
PICTURES = [golden.pattern(60 + 10 * row, 80) for row in range(5)]
CAPTIONS = [f"a picture of the old castle, number {row}" for row in range(5)]


def every(tiny_clip: str, random_weights: dict[str, Path], *kinds: str) -> Scoring:
    scorers = [Scorer(kind=kind, weights=str(random_weights[kind]) if kind in WEIGHTED else None) for kind in kinds]
    return Scoring(scorers=scorers, clip=tiny_clip, batch=2)


@pytest.fixture(scope="module")
def loaded(tiny_clip: str, random_weights: dict[str, Path]) -> Scorers:
    """Every kind there is."""
    return load(every(tiny_clip, random_weights, *KINDS))


@pytest.fixture
def on_clip(tiny_clip: str, random_weights: dict[str, Path]) -> Scorers:
    """To be broken."""
    return load(every(tiny_clip, random_weights, "aesthetic_v1", "clip_similarity"))


def test_every_kind_scores_every_sample(loaded: Scorers) -> None:
    loaded.self_test()
    scores = loaded.score(PICTURES, CAPTIONS)
    assert list(scores) == list(loaded.columns) == [name.replace("language", "detected_language") for name in KINDS]
    table = pa.table({name: pa.array(values, loaded.columns[name]) for name, values in scores.items()})
    assert table.num_rows == len(PICTURES) and all(column.null_count == 0 for column in table.columns)
    assert scores["detected_language"] == ["en"] * 5
    assert scores["caption_length"] == [len(caption) for caption in CAPTIONS]
    assert all(0 < float(value) < 1 for name in ("watermark", "nsfw") for value in scores[name])


def test_scores_do_not_depend_on_the_batch_beyond_rounding(loaded: Scorers) -> None:
    whole = Scorers(scorers=loaded.scorers, clip=loaded.clip, batch=100).score(PICTURES, CAPTIONS)
    for name, values in loaded.score(PICTURES, CAPTIONS).items():
        if name == "detected_language":
            assert values == whole[name]
        else:
            np.testing.assert_allclose(np.array(values, float), np.array(whole[name], float), atol=1e-4)


def test_an_activation_that_no_kernel_computes_is_refused(tiny_clip: str, random_weights: dict[str, Path]) -> None:
    half = replace(every(tiny_clip, random_weights, "clip_similarity"), precision="fp16")
    assert load(half).fingerprint["clip_similarity"].endswith(", fp16")
    with pytest.raises(
        UsageError, match=r"score.activation=fused cannot be had: on cpu it does not run \(.*; score without it"
    ):
        load(replace(half, activation="fused"))


def test_no_samples_give_no_scores(loaded: Scorers) -> None:
    assert set(map(len, loaded.score([], []).values())) == {0}
    assert load(Scoring()).score(PICTURES, CAPTIONS) == {}


def test_fingerprints_say_what_the_scores_depend_on(
    loaded: Scorers, on_clip: Scorers, random_weights: dict[str, Path]
) -> None:
    found = loaded.fingerprint
    assert len(set(found.values())) == len(KINDS)
    assert on_clip.fingerprint == {name: found[name] for name in on_clip.columns}  # the same weights, loaded again
    for kind in ("aesthetic_v1", "aesthetic_v2", "nsfw", "clip_similarity"):
        assert found[kind].endswith(loaded.clip.fingerprint)  # type: ignore[union-attr]
    assert not any(str(random_weights["nsfw"].parent) in value for value in found.values())


def test_a_broken_scorer_stops_the_job(on_clip: Scorers) -> None:
    on_clip.scorers[0].network.bias.data += 0.01  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="scorer aesthetic_v1 does not give its golden values"):
        on_clip.self_test()


def test_a_broken_clip_stops_the_job(on_clip: Scorers) -> None:
    right = on_clip.clip.network.encode_image  # type: ignore[union-attr]
    on_clip.clip.network.encode_image = lambda pixels, normalize: right(pixels)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"scorer clip does not .* norms"):
        on_clip.self_test()
    with pytest.raises(RunError, match="not normalised"):
        on_clip.score(PICTURES, CAPTIONS)


class Broken:
    """A scorer that gives no number."""

    name, arrow, fingerprint = "broken", pa.float64(), "broken 1"

    def self_test(self) -> None:
        pass

    def score(self, batch: object) -> list[float]:
        return [1.0, float("inf")]


def test_a_score_that_is_no_number_ends_the_run() -> None:
    scorers = Scorers(scorers=(Broken(),), clip=None, batch=2)
    with pytest.raises(RunError, match="scorer broken gives inf for sample 1"):
        scorers.score([Image.new("RGB", (2, 2))] * 2, ["", ""])


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="there twice"):
        load(Scoring(scorers=[Scorer(kind="flatness"), Scorer(kind="flatness")]))
    with pytest.raises(UsageError, match="'xx' is never found; those that are: af, am"):
        load(Scoring(scorers=[Scorer(kind="language", languages=("xx",))]))
