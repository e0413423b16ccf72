from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from bigdiff.config.scoring import Kind
from bigdiff.prep.metadata import COLUMNS
from bigdiff.prep.scorers.scorer import Batch, Floats, column, refused

PICTURES = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green")]


class Counting:
    """A stand-in for CLIP that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def image_features(self, pictures: Sequence[Image.Image]) -> Floats:
        self.asked.append("pictures")
        return np.zeros((len(pictures), 4), np.float32)

    def text_features(self, captions: Sequence[str]) -> Floats:
        self.asked.append("captions")
        return np.zeros((len(captions), 4), np.float32)


def test_our_scores_never_share_a_column_with_scores_of_the_metadata() -> None:
    ours = {column(kind) for kind in get_args(Kind)}
    assert len(ours) == len(get_args(Kind))
    stored = {"key", "row", "sha256", "original_width", "original_height"}
    assert not ours & (COLUMNS.keys() | stored | {"similarity", "pwatermark", "punsafe", "aesthetic", "hash"})


def test_features_are_computed_once_and_only_when_asked_for() -> None:
    clip = Counting()
    batch = Batch(PICTURES, ["a", "b"], clip)
    assert clip.asked == []
    assert batch.image_features is batch.image_features and clip.asked == ["pictures"]
    assert batch.text_features is batch.text_features and clip.asked == ["pictures", "captions"]
    assert len(batch) == 2


def test_a_batch_is_of_rgb_pictures_each_with_a_caption_and_asks_no_absent_clip() -> None:
    with pytest.raises(ValueError, match="2 pictures and 1 captions"):
        Batch(PICTURES, ["a"])
    with pytest.raises(ValueError, match="mode L"):
        Batch([Image.new("L", (4, 4))], ["a"])
    with pytest.raises(ValueError, match="without CLIP"):
        _ = Batch(PICTURES, ["a", "b"]).image_features


def test_a_refusal_is_one_sentence() -> None:
    assert str(refused("x", "1 in place of 2")) == (
        "scorer x does not give its golden values (1 in place of 2): refusing to score with it"
    )
