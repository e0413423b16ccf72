"""The likeness of a picture and its caption, as CLIP sees it."""

from typing import Final

import pyarrow as pa

from bigdiff.models.clip import Clip
from bigdiff.models.probes import disc
from bigdiff.prep.scorers.scorer import Batch, refused

VERSION: Final = 1
TOLERANCE: Final = 1e-4


class Similarity:
    """Cosine of the two embeddings; LAION's `similarity` column is of CLIP B/32, whose values differ."""

    name = "clip_similarity"
    arrow = pa.float64()

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.fingerprint = f"clip_similarity {VERSION}, on {clip.fingerprint}"

    def score(self, batch: Batch) -> list[float]:
        """Of each sample."""
        scores: list[float] = (batch.image_features * batch.text_features).sum(axis=1, dtype="float64").tolist()
        return scores

    def self_test(self) -> None:
        """A red disc is more like its own caption than like a blue one's, and by the cosine.

        Raises:
            UsageError: when it is not.
        """
        pictures, captions = [disc((255, 0, 0))] * 2, ["a red circle", "a blue circle"]
        own, other = self.score(Batch(pictures, captions, self._clip))
        image, text = self._clip.image_features(pictures[:1])[0], self._clip.text_features(captions[:1])[0]
        cosine = float(image.astype(float) @ text.astype(float))
        if not (own > other and abs(own - cosine) <= TOLERANCE):
            raise refused(self.name, f"a red disc: {own:.4f} with its caption, {other:.4f} with a blue one's")
