"""What an evaluation judges, with which networks, and which settings of it can have an effect."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from bigdiff.config import averages
from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import CLIP_MODEL

Resize: TypeAlias = Literal["clean", "legacy"]  # bigdiff.models.inception says what they are
Crop: TypeAlias = Literal["center", "none"]
CMMD_MODEL: Final = "ViT-L-14-336-quickgelu"
FEATURES: Final = 2048  # of Inception: a covariance of no more pictures is singular
BLOCK: Final = 64  # pictures that are drawn, judged and stored together
LEAST: Final = 5  # pictures that have third neighbours and a covariance
_DRAWN: Final = ("guidance", "steps", "scheduler", "seed", "batch", "size", "dtype", "keep")  # of a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Judges:
    """The networks that look at the pictures; one that is not named judges nothing."""

    inception: str = ""  # file: FID, precision and recall
    resize: Resize = "clean"
    clip: str = ""  # file, or local-dir:FOLDER: CLIP-SCORE
    clip_model: str = CLIP_MODEL
    clip_prefix: str = ""  # before each caption; Hessel et al. have "A photo depicts "
    cmmd_clip: str = ""  # file, or local-dir:FOLDER: CMMD
    cmmd_model: str = CMMD_MODEL


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation: pictures that a model draws at each guidance, or that lie in a folder, against real ones."""

    output: Path
    judges: Judges
    pipeline: Path | None = None
    checkpoint: Path | None = None
    weights: str = averages.DEFAULT  # of `checkpoint`: bigdiff.config.averages
    pictures: Path | None = None
    prompts: Path | None = None
    column: str = ""  # of a parquet file; "": the first of the usual names
    real: str = ""
    real_crop: Crop = "center"
    cache: Path | None = None  # of what the networks see in real sets; None: below `output`
    images: int = 0  # 0: as many as there are prompts, or pictures
    guidance: tuple[float, ...] = (3.0,)
    steps: int = 50
    scheduler: str = "ddim"
    seed: int = 0
    batch: int = 8
    size: int = 0  # pixels; 0 is the model's own
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the pipeline
    processes: int = 0  # 0: one for each GPU, or one
    few_images: bool = False
    keep: bool = False
    tensorboard: Path | None = None
    samples_seen: int | None = None  # where its points stand


def asked(values: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a door's arguments by their names; `guidance` is text such as "1.5,3".

    Raises:
        UsageError: naming the first that cannot be used, or has no effect.
    """
    judges = Judges(**{field.name: values[field.name] for field in fields(Judges)})
    plain = [field.name for field in fields(Evaluation) if field.name not in ("judges", "guidance")]
    rest = {name: values[name] for name in plain}
    return check(Evaluation(judges=judges, guidance=_guidance(values["guidance"]), **rest))


def check(wanted: Evaluation) -> Evaluation:
    """`wanted` itself, when every setting can have an effect.

    Raises:
        UsageError: naming the first that cannot.
    """
    judges = wanted.judges
    if [wanted.pipeline, wanted.checkpoint, wanted.pictures].count(None) != 2:
        raise UsageError("give --pipeline or --checkpoint, which draws the pictures, or --pictures, a folder of them")
    if not (judges.inception or judges.clip or judges.cmmd_clip):
        raise UsageError("nothing would be computed: name weights with --inception, --clip or --cmmd-clip")
    _check_idle(wanted)
    _check_numbers(wanted)
    of_real = [name for name in ("inception", "cmmd_clip") if getattr(judges, name)]
    if of_real and not wanted.real:
        raise UsageError(f"{flag(of_real[0])} compares with real pictures: name them with --real")
    if wanted.real and not of_real:
        raise UsageError("--real has no effect without --inception or --cmmd-clip: leave it out")
    if judges.clip and wanted.prompts is None:
        raise UsageError("--clip compares pictures with their captions: name them with --prompts")
    return wanted


def refuse_few(wanted: Evaluation, count: int, what: str) -> None:
    """Raise a UsageError for `count` pictures too few for what is computed; `what` are they, in the user's words."""
    if not wanted.judges.inception:
        return
    if count < LEAST:
        raise UsageError(f"{what} are {count} pictures: precision, recall and FID need {LEAST} or more")
    if count <= FEATURES and not wanted.few_images:
        raise UsageError(
            f"{what} are {count:,} pictures, whose covariance of {FEATURES:,} features is singular and FID far too "
            f"high: take more than {FEATURES:,} (10,000 to 50,000 are usual), or say --few-images"
        )


def flag(name: str) -> str:
    """A setting as the door calls it."""
    return "--" + name.replace("_", "-")


def _guidance(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(one) for one in text.split(","))
    except ValueError:
        raise UsageError(f"--guidance {text!r} must be numbers with commas between them, such as 1.5,3,5") from None
    for number, one in enumerate(found):
        if not math.isfinite(one) or one < 1:
            raise UsageError(f"--guidance {one:g} must be at least 1, which is no guidance")
        if one in found[:number]:
            raise UsageError(f"--guidance names {one:g} twice: remove one")
    return found


def _check_idle(wanted: Evaluation) -> None:
    """Refuse what has no effect beside the rest."""
    default, drawn = Evaluation(output=wanted.output, judges=Judges()), wanted.pipeline or wanted.checkpoint
    users = {
        "resize": wanted.judges.inception,
        "few_images": wanted.judges.inception,
        "clip_model": wanted.judges.clip,
        "clip_prefix": wanted.judges.clip,
        "cmmd_model": wanted.judges.cmmd_clip,
        "real_crop": wanted.real,
        "cache": wanted.real,
        "column": wanted.prompts,
        "prompts": wanted.judges.clip or drawn,
        "weights": wanted.checkpoint,
        "samples_seen": wanted.tensorboard and not wanted.checkpoint,
        **{name: drawn for name in _DRAWN},
    }
    for name, user in users.items():
        holder, first = (wanted.judges, default.judges) if hasattr(wanted.judges, name) else (wanted, default)
        if not user and getattr(holder, name) != getattr(first, name):
            raise UsageError(f"{flag(name)} has no effect here: leave it out")
    if wanted.tensorboard is not None and wanted.samples_seen is None and wanted.checkpoint is None:
        raise UsageError("--tensorboard needs --samples-seen: how many images the model was trained on")


def _check_numbers(wanted: Evaluation) -> None:
    for name in ("images", "size", "processes"):
        if getattr(wanted, name) < 0:
            raise UsageError(f"{flag(name)} {getattr(wanted, name)} must not be negative")
    for name in ("steps", "batch"):
        if getattr(wanted, name) < 1:
            raise UsageError(f"{flag(name)} {getattr(wanted, name)} must be positive")
    if wanted.batch > BLOCK:
        raise UsageError(f"--batch {wanted.batch} is more than the {BLOCK} pictures that are stored together")
    if wanted.samples_seen is not None and wanted.samples_seen < 0:
        raise UsageError(f"--samples-seen {wanted.samples_seen} must not be negative")
