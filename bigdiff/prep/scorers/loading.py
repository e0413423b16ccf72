"""The scorers of a preparation, built with one CLIP, and the samples' scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa
from PIL import Image

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.scoring import HEADS, ON_CLIP, Scoring, check_scoring
from bigdiff.config.scoring import Scorer as Wanted
from bigdiff.prep.scorers.captions import CaptionLength, Language
from bigdiff.prep.scorers.pictures import Flatness, Sharpness
from bigdiff.prep.scorers.scorer import Batch, Bytes, Computed, Embedder, Scorer, Value

EMBEDDINGS: Final = "embeddings"  # named so among the fingerprints


class Tested(Embedder, Protocol):
    """CLIP, as far as it is known here."""

    @property
    def fingerprint(self) -> str:
        """What its embeddings depend on."""

    def self_test(self) -> None:
        """Raises UsageError when it is not a true one."""

    def seen(self, picture: Image.Image) -> Bytes:
        """What it is shown of a picture."""

    def start(self, seen: Sequence[Bytes]) -> Computed:
        """Begin to compute the embeddings of what is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorers:
    """All scorers of a preparation."""

    scorers: tuple[Scorer, ...]
    clip: Tested | None
    batch: int  # samples of one forward pass
    embeddings: bool = False  # of the pictures are wanted, too

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that `score` gives, in order, and their types."""
        return {scorer.name: scorer.arrow for scorer in self.scorers}

    @property
    def fingerprint(self) -> dict[str, str]:
        """Column -> what its values depend on. Scores whose fingerprints differ must not be mixed in one set."""
        found = {scorer.name: scorer.fingerprint for scorer in self.scorers}
        if self.embeddings and self.clip is not None:
            found[EMBEDDINGS] = self.clip.fingerprint
        return found

    def self_test(self) -> None:
        """Every scorer computes known values; some seconds, before a job of days.

        Raises:
            UsageError: in one sentence, for the first that does not give them.
        """
        if self.clip is not None:
            self.clip.self_test()
        for scorer in self.scorers:
            scorer.self_test()

    def seen(self, picture: Image.Image) -> Bytes | None:
        """What CLIP is shown of a picture, for threads to prepare; None without CLIP."""
        return None if self.clip is None else self.clip.seen(picture)

    def begun(self, pictures: Sequence[Image.Image], captions: Sequence[str], seen: Sequence[Bytes | None]) -> Batch:
        """A batch whose pictures CLIP has already, as `seen` gave them; `of` waits for it."""
        shown = [one for one in seen if one is not None]
        started = None if self.clip is None or not shown else self.clip.start(shown)
        return Batch(pictures, captions, self.clip, started)

    def score(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, list[Value]]:
        """Column -> a value for each sample, in order; any number of them, `batch` at a time.

        Args:
            pictures: upright, 8-bit RGB, of any size.
            captions: as they are stored, cleaned.

        Raises:
            RunError: for a score that is not a finite number, or embeddings that are not of unit norm.
        """
        found: dict[str, list[Value]] = {scorer.name: [] for scorer in self.scorers}
        for first in range(0, len(pictures), self.batch):
            part = slice(first, first + self.batch)
            for name, values in self.of(Batch(pictures[part], captions[part], self.clip), first).items():
                found[name] += values
        return found

    def of(self, batch: Batch, first: int = 0) -> dict[str, list[Value]]:
        """The same of one batch, whose first sample has the number `first` in what is said of it."""
        return {scorer.name: _finite(scorer.name, scorer.score(batch), first) for scorer in self.scorers}


def load(scoring: Scoring) -> Scorers:
    """Build what `scoring` names, on the GPU where there is one; call `self_test` before scoring with it.

    Raises:
        UsageError: for settings without effect, weights that are absent, unreadable or of another model, or kernels
            that do not work.
    """
    check_scoring(scoring)
    kinds = {scorer.kind for scorer in scoring.scorers}
    scorers: list[Scorer] = []
    if not kinds & {*ON_CLIP, "watermark"} and not scoring.embeddings:
        scorers += [_plain(wanted) for wanted in scoring.scorers]
        return Scorers(scorers=tuple(scorers), clip=None, batch=scoring.batch)
    # torch, open_clip and timm take seconds to import, which captions and sharpness need not wait for
    from bigdiff.models.clip import load_clip
    from bigdiff.models.exact import choose
    from bigdiff.prep.scorers.heads import Head
    from bigdiff.prep.scorers.similarity import Similarity
    from bigdiff.prep.scorers.watermark import Watermark

    device, clip = choose(), None
    if scoring.clip:
        clip = load_clip(
            scoring.clip,
            scoring.clip_model,
            for_heads=bool(kinds & {*HEADS}),
            device=device,
            half=scoring.precision == "fp16",
        )
        if scoring.activation == "fused" and (problem := clip.fuse()):
            raise UsageError(f"score.activation=fused cannot be had: {problem}; score without it")
    for wanted in scoring.scorers:
        if wanted.kind == "watermark":
            scorers.append(Watermark(wanted.weights or "", device))
        elif clip is None or wanted.kind not in ON_CLIP:
            scorers.append(_plain(wanted))
        elif wanted.kind == "clip_similarity":
            scorers.append(Similarity(clip))
        else:
            scorers.append(Head(wanted.kind, wanted.weights or "", clip.fingerprint, device))
    return Scorers(scorers=tuple(scorers), clip=clip, batch=scoring.batch, embeddings=scoring.embeddings)


def _plain(wanted: Wanted) -> Scorer:
    """A scorer without weights."""
    if wanted.kind == "caption_length":
        return CaptionLength()
    if wanted.kind == "sharpness":
        return Sharpness()
    if wanted.kind == "flatness":
        return Flatness()
    language = Language()
    unknown = [code for code in wanted.languages if code not in language.codes]
    if unknown:
        known = ", ".join(sorted(language.codes))
        raise UsageError(f"score: the language {unknown[0]!r} is never found; those that are: {known}")
    return language


def _finite(name: str, values: Sequence[Value], first: int) -> list[Value]:
    for number, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(f"scorer {name} gives {value} for sample {first + number} of those it was handed")
    return list(values)
