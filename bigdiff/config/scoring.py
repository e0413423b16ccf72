"""Which scores data preparation computes itself, with which weights, and what a sample's scores must reach."""

import math
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from bigdiff.config.errors import UsageError

Kind: TypeAlias = Literal[
    "aesthetic_v1",  # LAION's first predictor, about 1 to 10, of CLIP L/14
    "aesthetic_v2",  # LAION's second one, whose scale differs, of CLIP L/14
    "watermark",  # probability of a watermark, LAION-5B-WatermarkDetection
    "nsfw",  # probability of unsafe content, LAION's CLIP-based detector, of CLIP L/14
    "clip_similarity",  # cosine of picture and caption
    "language",  # of the caption, as two letters; "und" where it cannot be told
    "caption_length",  # characters
    "sharpness",  # variance of the Laplacian of the grey picture, 256 px
    "flatness",  # share of the pixels around which nothing changes
]
CLIP_MODEL: Final = "ViT-L-14-quickgelu"
WEIGHTED: Final = ("aesthetic_v1", "aesthetic_v2", "watermark", "nsfw")
HEADS: Final = ("aesthetic_v1", "aesthetic_v2", "nsfw")  # on the picture's embedding by OpenAI's CLIP L/14
ON_CLIP: Final = (*HEADS, "clip_similarity")
OWN_CONFIG: Final = ("hf-hub:", "local-dir:")  # open_clip's sources that come with their model's configuration
_OPENAI_TAG: Final = "openai"
_QUICK: Final = "-quickgelu"
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "watermark": (0, 1),
    "nsfw": (0, 1),
    "clip_similarity": (-1, 1),
    "caption_length": (0, math.inf),
    "sharpness": (0, math.inf),
    "flatness": (0, 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """One score, which is stored in its own column; with thresholds, samples that do not reach them are left out."""

    kind: Kind
    weights: str | None = None  # file of the head or detector: .pth, .pt, .safetensors, or .npz for nsfw
    at_least: float | None = None  # score >= this
    above: float | None = None  # score > this
    below: float | None = None  # score < this
    languages: tuple[str, ...] = ()  # of kind language: the caption's is one of these, such as "en"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """The scores of one preparation; none: nothing is computed."""

    scorers: list[Scorer] = field(default_factory=list)  # a list: OmegaConf does not check the items of a tuple
    batch: int = 64  # pictures of one forward pass
    embeddings: bool = False  # keep CLIP's embeddings of the pictures while the set is made, for dedup.embedding_above
    # CLIP's weights: a file (.safetensors, or torch's with plain tensors), "openai", "hf-hub:owner/name", or
    # "local-dir:folder" with open_clip_config.json
    clip: str | None = None
    # open_clip's name. OpenAI's weights use QuickGELU: "ViT-L-14" computes with another function and scores wrong
    clip_model: str = CLIP_MODEL
    # that CLIP computes in: on a GPU fp16 is many times as fast, and moves embeddings by some thousandths (its
    # self-test bounds it); the two are different scores, and are not mixed in a set
    precision: Literal["fp32", "fp16"] = "fp32"
    # fused: CLIP's QuickGELU by kernels of our own, on a GPU in fp16; it rounds once in place of thrice, so those are
    # different scores, too
    activation: Literal["plain", "fused"] = "plain"


def check_scoring(scoring: Scoring) -> Scoring:
    """`scoring` itself when every value can have an effect.

    Raises:
        UsageError: naming the first key that cannot be used.
    """
    if scoring.batch <= 0:
        raise UsageError(f"score.batch is {scoring.batch}: it must be above 0")
    kinds = [scorer.kind for scorer in scoring.scorers]
    for number, scorer in enumerate(scoring.scorers):
        where = f"score.scorers[{number}] ({scorer.kind})"
        if scorer.kind in kinds[:number]:
            raise UsageError(f"{where} is there twice: keep one of the two")
        _check_weights(scorer, where)
        _check_thresholds(scorer, where)
        _check_languages(scorer, where)
    _check_clip(scoring, kinds)
    return scoring


def only(scoring: Scoring, scorers: list[Scorer]) -> Scoring:
    """`scoring` with some of its scorers, and with CLIP where one of them, or the embeddings, need it."""
    if scoring.embeddings or any(scorer.kind in ON_CLIP for scorer in scorers):
        return replace(scoring, scorers=scorers)
    return Scoring(scorers=scorers, batch=scoring.batch)


def _check_weights(scorer: Scorer, where: str) -> None:
    if scorer.kind in WEIGHTED and not scorer.weights:
        raise UsageError(f"{where} needs its weights: name their file as `weights`")
    if scorer.kind not in WEIGHTED and scorer.weights is not None:
        raise UsageError(f"{where} has no weights of its own: remove weights={scorer.weights}")


def _check_thresholds(scorer: Scorer, where: str) -> None:
    given = {"at_least": scorer.at_least, "above": scorer.above, "below": scorer.below}
    low, high = _RANGES.get(scorer.kind, (-math.inf, math.inf))
    for name, value in given.items():
        if value is None:
            continue
        if scorer.kind == "language":
            raise UsageError(f"{where} is no number: remove {name}={value}, and name `languages`")
        if not math.isfinite(value):
            raise UsageError(f"{where} has {name}={value}: it must be a finite number")
        beyond = value < low or value > high
        if beyond or (name == "at_least" and value == low) or (name == "below" and value == low):
            raise UsageError(f"{where} has {name}={value}, which all or none reach: its values are {low:g} to {high:g}")
        if name == "above" and value == high:
            raise UsageError(f"{where} has above={value}, which none reach: its values are {low:g} to {high:g}")
    if scorer.at_least is not None and scorer.above is not None:
        raise UsageError(f"{where} has at_least and above: remove one of them")
    least = scorer.at_least if scorer.at_least is not None else scorer.above
    if least is not None and scorer.below is not None and least >= scorer.below:
        raise UsageError(f"{where} is to be both {least:g} or more and below {scorer.below:g}: nothing passes")


def _check_languages(scorer: Scorer, where: str) -> None:
    if scorer.kind != "language":
        if scorer.languages:
            raise UsageError(f"{where} has no language: remove languages={','.join(scorer.languages)}")
        return
    for number, code in enumerate(scorer.languages):
        if code in scorer.languages[:number]:
            raise UsageError(f"{where} names the language {code!r} twice: remove one")
        if code != "und" and not (len(code) == 2 and code.isascii() and code.isalpha() and code.islower()):
            raise UsageError(f"{where} names the language {code!r}: give two small letters (ISO 639-1), or und")


def _check_clip(scoring: Scoring, kinds: list[Kind]) -> None:
    users = [*(kind for kind in kinds if kind in ON_CLIP), *(["score.embeddings"] if scoring.embeddings else [])]
    heads = [kind for kind in kinds if kind in HEADS]
    if not users:
        given = (
            ("clip", scoring.clip, None),
            ("clip_model", scoring.clip_model, CLIP_MODEL),
            ("precision", scoring.precision, "fp32"),
            ("activation", scoring.activation, "plain"),
        )
        for key, value, default in given:
            if value != default:
                raise UsageError(f"score.{key}={value} has no effect: none of the scorers uses CLIP; remove it")
        return
    if not scoring.clip:
        raise UsageError(f"score.clip is missing: {users[0]} needs CLIP's weights (a file, or openai)")
    if scoring.activation == "fused" and scoring.precision == "fp32":
        raise UsageError(
            "score.activation=fused is for score.precision=fp16, as fp32 is computed by torch alone: set that, too, or "
            "drop it"
        )
    if scoring.clip.startswith(OWN_CONFIG):
        if scoring.clip_model != CLIP_MODEL:
            raise UsageError(
                f"score.clip_model={scoring.clip_model} has no effect: {scoring.clip} says itself what it is; remove it"
            )
    elif heads and scoring.clip_model != CLIP_MODEL:
        raise UsageError(
            f"score.clip_model={scoring.clip_model} does not fit {heads[0]}, which reads embeddings of OpenAI's CLIP "
            f"L/14 with QuickGELU: leave it at {CLIP_MODEL}"
        )
    elif scoring.clip == _OPENAI_TAG and not scoring.clip_model.endswith(_QUICK):
        raise UsageError(
            f"score.clip_model={scoring.clip_model} does not fit score.clip=openai: those weights use QuickGELU, so "
            f"name {scoring.clip_model}{_QUICK}"
        )
