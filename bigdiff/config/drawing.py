"""What `launch/sample.py` draws, where it goes, and which of its settings can have an effect."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import flag
from bigdiff.config.scoring import CLIP_MODEL

STRENGTH: Final = 0.8  # of --image, as in diffusers
UPSCALE_STRENGTH: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Pictures of a pipeline: each prompt with each seed, into a grid, a folder, or both."""

    pipeline: Path
    output: Path | None = None  # PNG of all pictures
    folder: Path | None = None  # of a PNG for each
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    count: int | None = None  # of a model without text
    negative: str = ""
    guidance: float = 3.0
    scheduler: str = "ddim"
    steps: int = 20
    seeds: tuple[int, ...] = ()  # (): 0
    batch: int = 8
    size: int = 0  # pixels; 0 is the model's own
    columns: int = 0  # of the grid; 0: one for each seed, or about a square
    image: Path | None = None  # with which each picture begins
    strength: float | None = None  # share of the steps that change it; None: STRENGTH
    upscale: float | None = None  # factor of the sides, by which what is drawn is enlarged and drawn over
    upscale_strength: float | None = None  # share of the steps at the larger size; None: UPSCALE_STRENGTH
    clip_guidance: float | None = None  # scale of CLIP's loss
    clip: str = ""  # file, or local-dir:FOLDER
    clip_model: str = CLIP_MODEL


def asked(values: Mapping[str, Any]) -> Drawing:
    """The drawing of a door's arguments by their names; `seeds` is text such as "1,2,3" in place of one `seed`.

    Raises:
        UsageError: naming the first that cannot be used, or has no effect.
    """
    made = ("prompt", "seeds")
    plain = {field.name: values[field.name] for field in fields(Drawing) if field.name not in made}
    seeds = _seeds(values["seeds"]) if values["seeds"] is not None else ()
    if values["seed"] is not None:
        seeds = (values["seed"],)
    return check(Drawing(prompt=tuple(values["prompt"] or ()), seeds=seeds, **plain))


def check(wanted: Drawing) -> Drawing:
    """`wanted` itself, when every setting can have an effect.

    Raises:
        UsageError: naming the first that cannot.
    """
    if wanted.output is None and wanted.folder is None:
        raise UsageError("say where the pictures go: --output FILE.png for a grid, --folder DIR for a file each")
    if wanted.output is not None and wanted.output.suffix != ".png":
        raise UsageError(f"--output {wanted.output} must end in .png")
    if wanted.folder is not None and wanted.folder.exists() and not wanted.folder.is_dir():
        raise UsageError(f"--folder {wanted.folder} is a file: name a folder")
    if wanted.columns and wanted.output is None:
        raise UsageError("--columns has no effect without --output: leave it out")
    if wanted.count is not None and wanted.count < 1:
        raise UsageError(f"--count {wanted.count} must be positive: say how many pictures")
    for name in ("columns", "size"):
        if getattr(wanted, name) < 0:
            raise UsageError(f"{flag(name)} {getattr(wanted, name)} must not be negative")
    _check_stages(wanted)
    _check_clip(wanted)
    return wanted


def _check_stages(wanted: Drawing) -> None:
    """Refuse what cannot be done in stages."""
    for name, user in (("strength", "image"), ("upscale_strength", "upscale")):
        share = getattr(wanted, name)
        if share is not None and getattr(wanted, user) is None:
            raise UsageError(f"{flag(name)} has no effect without {flag(user)}: leave it out")
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"{flag(name)} {share:g} must be above 0 and at most 1")
    if wanted.upscale is not None and not 1 < wanted.upscale < math.inf:
        raise UsageError(f"--upscale {wanted.upscale:g} must be above 1, which is the size that is drawn first")
    for name in ("image", "upscale", "clip_guidance"):
        if getattr(wanted, name) is not None and wanted.count is not None:
            raise UsageError(f"{flag(name)} is for models with text: give prompts, not a count")


def _check_clip(wanted: Drawing) -> None:
    scale = wanted.clip_guidance
    if scale is not None and not 0 < scale < math.inf:
        raise UsageError(f"--clip-guidance {scale:g} must be above 0: without it CLIP has no effect")
    if scale is not None and not wanted.clip:
        raise UsageError("--clip-guidance needs CLIP's weights: name them with --clip")
    for name, given in (("clip", bool(wanted.clip)), ("clip_model", wanted.clip_model != CLIP_MODEL)):
        if given and scale is None:
            raise UsageError(f"{flag(name)} has no effect without --clip-guidance: leave it out")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(one) for one in text.split(","))
    except ValueError:
        raise UsageError(f"--seeds {text!r} must be whole numbers with commas between them, such as 1,2,3") from None
    for number, one in enumerate(found):
        if one in found[:number]:
            raise UsageError(f"--seeds names {one} twice: remove one")
    return found
