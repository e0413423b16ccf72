"""What every scorer is, and the batch that they share."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.models import probes

Value: TypeAlias = float | int | str
Bytes: TypeAlias = np.typing.NDArray[np.uint8]
Floats: TypeAlias = np.typing.NDArray[np.float32]
# `language` is a column of the metadata: what others measured is not mixed with what we do
_COLUMNS: Final = {"language": "detected_language"}


def column(kind: str) -> str:
    """The column of a kind's scores in the set's parquet files."""
    return _COLUMNS.get(kind, kind)


class Embedder(Protocol):
    """What a batch needs of CLIP."""

    def image_features(self, pictures: Sequence[Image.Image]) -> Floats:
        """Embeddings [B, D] of unit norm."""

    def text_features(self, captions: Sequence[str]) -> Floats:
        """Embeddings [B, D] of unit norm."""


class Computed(Protocol):
    """Embeddings that may still be on their way."""

    def embeddings(self) -> Floats:
        """[B, D] of unit norm, once they are there."""


class Batch:
    """Upright 8-bit RGB pictures and their cleaned captions; CLIP sees each of them once, when a scorer asks."""

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        captions: Sequence[str],
        clip: Embedder | None = None,
        started: Computed | None = None,
    ) -> None:
        """`started`: what `clip` computes of the pictures already."""
        if len(pictures) != len(captions):
            raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions")
        modes = {picture.mode for picture in pictures} - {"RGB"}
        if modes:
            raise ValueError(f"pictures of mode {', '.join(sorted(modes))}: they must be RGB")
        self.pictures, self.captions, self._clip = tuple(pictures), tuple(captions), clip
        self._started = started

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def image_features(self) -> Floats:
        """CLIP's embeddings [B, D] of the pictures, of unit norm."""
        return self._started.embeddings() if self._started else self._embedder.image_features(self.pictures)

    @cached_property
    def text_features(self) -> Floats:
        """CLIP's embeddings [B, D] of the captions, of unit norm."""
        return self._embedder.text_features(self.captions)

    @property
    def _embedder(self) -> Embedder:
        if self._clip is None:
            raise ValueError("a batch without CLIP has no embeddings")
        return self._clip


class Scorer(Protocol):
    """One score of each sample."""

    @property
    def name(self) -> str:
        """Its column."""

    @property
    def arrow(self) -> pa.DataType:
        """The column's type."""

    @property
    def fingerprint(self) -> str:
        """What its values depend on: weights by sha256, the version of its preprocessing."""

    def self_test(self) -> None:
        """Compute known values.

        Raises:
            UsageError: in one sentence, when they are not what they must be.
        """

    def score(self, batch: Batch) -> Sequence[Value]:
        """A value for each sample, in order."""


def refused(name: str, what: str) -> UsageError:
    """What a failed self-test raises."""
    return probes.refused(f"scorer {name}", what)
