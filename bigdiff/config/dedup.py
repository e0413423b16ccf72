"""Which samples count as copies of others, which of them stays, and which pictures a set must not hold.

Samples whose stored bytes are equal are always one. Anything else here is off until it is set.
"""

from dataclasses import dataclass
from typing import Final, Literal

from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import Scoring

MOST_BITS: Final = 8  # of 64; different pictures differ in some 32, but unlike ones of one kind come near at 10 to 16
DEFAULT_EVALUATION_DISTANCE: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup:
    """Duplicates among the samples, and samples that an evaluation would find again."""

    near_distance: int | None = None  # bits of the 64-bit pHash; 0 = equal hashes only
    embedding_above: float | None = None  # cosine of two pictures' CLIP embeddings > this
    keep: Literal["first", "largest", "highest"] = "first"  # of copies: in order, by original pixels, by `keep_by`
    keep_by: str | None = None  # the column whose highest value stays; rows without one come last
    evaluation_pictures: str | None = None  # a folder; what looks like a picture in it is dropped
    evaluation_captions: str | None = None  # .txt, .csv or .parquet; what has a caption of it is dropped
    evaluation_distance: int | None = None  # bits, as near_distance; null = 4


def check_dedup(dedup: Dedup, scoring: Scoring, section: str = "dedup") -> Dedup:
    """`dedup` itself when every value can be used and has an effect, beside the scores of `scoring`.

    Raises:
        UsageError: naming the first key that cannot.
    """
    for key, bits in (
        ("near_distance", dedup.near_distance),
        ("evaluation_distance", dedup.evaluation_distance),
    ):
        if bits is not None and not 0 <= bits <= MOST_BITS:
            raise UsageError(f"{section}.{key} is {bits}: it must be from 0 to {MOST_BITS} bits")
    above = dedup.embedding_above
    if above is not None and not 0.5 <= above < 1:  # not-a-number fails too
        raise UsageError(f"{section}.embedding_above is {above}: it must be from 0.5 to below 1")
    for key, text in (
        ("keep_by", dedup.keep_by),
        ("evaluation_pictures", dedup.evaluation_pictures),
        ("evaluation_captions", dedup.evaluation_captions),
    ):
        if text is not None and not text.strip():
            raise UsageError(f"{section}.{key} is empty: set it to null, or to a name")
    if (above is None) == scoring.embeddings:
        raise UsageError(f"{section}.embedding_above and score.embeddings need each other: set both, or neither")
    return _check_together(dedup, section)


def _check_together(dedup: Dedup, section: str) -> Dedup:
    if dedup.keep == "highest" and dedup.keep_by is None:
        raise UsageError(f"{section}.keep=highest needs {section}.keep_by: name the column, such as aesthetic")
    if dedup.keep != "highest" and dedup.keep_by is not None:
        raise UsageError(
            f"{section}.keep_by has no effect with {section}.keep={dedup.keep}: set {section}.keep=highest"
        )
    if dedup.evaluation_distance is not None and dedup.evaluation_pictures is None:
        raise UsageError(
            f"{section}.evaluation_distance has no effect without {section}.evaluation_pictures: set it to null"
        )
    return dedup
