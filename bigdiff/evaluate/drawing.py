"""The pictures of `launch/sample.py`: each prompt with each seed, into a grid, or a file each that is drawn once."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from diffusers import StableDiffusionPipeline
from PIL import Image

from bigdiff.config.drawing import STRENGTH, UPSCALE_STRENGTH, Drawing
from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Judges
from bigdiff.data.decoding import Undecodable, load
from bigdiff.evaluate import batchfile, clip_guidance, grid, img2img, networks, pictures, sampling, stages, textless
from bigdiff.evaluate.batchfile import Line
from bigdiff.evaluate.sampling import Request, Sampling
from bigdiff.evaluate.stages import Stages
from bigdiff.runtime.files import remove_leftovers, sha256

_SIDE_LIMIT: Final = 1 << 28  # pixels of a picture that was drawn here
_PLACES: Final = {"pipeline", "image", "clip"}  # where files lie is no part of a picture; what they hold is
_MEND: Final = "take another folder, or delete that file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be drawn."""

    requests: tuple[Request, ...]
    settings: Sampling
    common: Mapping[str, Any]  # what all pictures have in common, as their PNGs tell it
    stages: Stages | None  # None: diffusers' own call does it


def plan(wanted: Drawing) -> Plan:
    """The pictures of a drawing: for each prompt, or number of a count, those of each seed.

    A line with a seed of its own is drawn as a single `--prompt` with that `--seed` is.

    Raises:
        UsageError: for prompts that cannot be read, or settings that cannot work or have no effect.
    """
    settings = Sampling(
        steps=wanted.steps,
        guidance=wanted.guidance,
        negative_prompt=wanted.negative,
        scheduler=wanted.scheduler,
        seed=_seeds(wanted)[0],
        batch=wanted.batch,
        height=wanted.size,
        width=wanted.size,
    )
    sampling.check(settings)
    common = {
        "pipeline": str(wanted.pipeline),
        "steps": wanted.steps,
        "guidance": wanted.guidance,
        "scheduler": wanted.scheduler,
        "size": wanted.size,
    }
    staged = _stages(wanted, settings)
    told = common | _of_stages(wanted, staged)
    return Plan(requests=_requests(wanted), settings=settings, common=told, stages=staged)


def run(wanted: Drawing, say: Callable[[str], None]) -> None:
    """Draw what `wanted` says, and does not lie in its folder already; write the files.

    Raises:
        UsageError: for a pipeline or settings that cannot work, or a folder with pictures of other settings.
    """
    planned = _led(plan(wanted), wanted)
    requests, folder = planned.requests, wanted.folder
    there: set[int] = set()
    told = [{**planned.common, **_own(one)} for one in requests]
    if folder is not None:
        sampling.kind_of(wanted.pipeline)
        content = pictures.of_pipeline(wanted.pipeline)
        told = [{**one, "pipeline_sha256": content} for one in told]
        remove_leftovers(folder)
        there = {number for number, about in enumerate(told) if _is_there(_file(folder, number), about)}
    missing = [number for number in range(len(requests)) if number not in there]
    fresh: dict[int, Image.Image] = {}
    for number, picture in zip(missing, _drawn(wanted, planned, [requests[one] for one in missing]), strict=True):
        if folder is not None:
            grid.save(_file(folder, number), picture, told[number])
        if wanted.output is not None:
            fresh[number] = picture
    if folder is not None:
        known = f", {len(there)} of them from before" if there else ""
        say(f"{folder}: {len(requests)} pictures{known}")
    if wanted.output is not None:
        every = [fresh[number] if number in fresh else _read(folder, number) for number in range(len(requests))]
        _save_grid(wanted, planned, every)
        say(f"{wanted.output}: {len(every)} pictures")


def summary(planned: Plan) -> dict[str, Any]:
    """The settings of all pictures, as a grid tells them."""
    return {
        **planned.common,
        "negative_prompt": planned.settings.negative_prompt,
        "prompts": [one.prompt or "" for one in planned.requests],
        "negatives": [one.negative for one in planned.requests],
        "seeds": [one.seed for one in planned.requests],
        "places": [one.place for one in planned.requests],
    }


def _stages(wanted: Drawing, settings: Sampling) -> Stages | None:
    if wanted.image is None and wanted.upscale is None and wanted.clip_guidance is None:
        return None
    share = STRENGTH if wanted.strength is None else wanted.strength
    staged = Stages(
        image=None if wanted.image is None else img2img.read(wanted.image),
        strength=1.0 if wanted.image is None else share,
        upscale=wanted.upscale or 1.0,
        upscale_strength=UPSCALE_STRENGTH if wanted.upscale_strength is None else wanted.upscale_strength,
    )
    stages.refuse_later(settings, staged)
    if wanted.clip_guidance is not None:
        clip_guidance.refuse(settings.scheduler)
        networks.refuse_absent(_judges(wanted))
    return staged


def _judges(wanted: Drawing) -> Judges:
    return Judges(clip=wanted.clip, clip_model=wanted.clip_model)


def _led(planned: Plan, wanted: Drawing) -> Plan:
    """With CLIP's weights, which a dry run does not read."""
    if planned.stages is None or wanted.clip_guidance is None:
        return planned
    clip = networks.loaded(_judges(wanted)).clip
    assert clip is not None
    return replace(
        planned,
        common={**planned.common, "clip_fingerprint": clip.fingerprint},
        stages=replace(planned.stages, clip=clip, clip_scale=wanted.clip_guidance),
    )


def _of_stages(wanted: Drawing, staged: Stages | None) -> dict[str, Any]:
    """The settings of the stages that there are."""
    told: dict[str, Any] = {}
    if staged is not None and wanted.image is not None:
        told |= {"image": str(wanted.image), "image_sha256": sha256(wanted.image), "strength": staged.strength}
    if staged is not None and wanted.upscale is not None:
        told |= {"upscale": staged.upscale, "upscale_strength": staged.upscale_strength}
    if wanted.clip_guidance is not None:
        told |= {"clip": wanted.clip, "clip_guidance": wanted.clip_guidance}
    return told


def _requests(wanted: Drawing) -> tuple[Request, ...]:
    if wanted.count is not None:
        return tuple(
            Request(prompt=None, negative=wanted.negative, seed=seed, place=place)
            for place in range(wanted.count)
            for seed in _seeds(wanted)
        )
    if wanted.prompts is None:
        lines = [Line(prompt=prompt) for prompt in wanted.prompt]
    else:
        lines = batchfile.read(wanted.prompts)
        _refuse_idle(lines, wanted)
    return tuple(request for place, line in enumerate(lines) for request in _of_line(line, place, wanted))


def _refuse_idle(lines: Sequence[Line], wanted: Drawing) -> None:
    """Refuse what has no effect on the lines of a file, or in one of them."""
    for number, line in enumerate(lines, 1):
        where = f"{wanted.prompts} line {number}"
        if line.seed is not None and len(wanted.seeds) > 1:
            raise UsageError(f"{where} has a seed of its own, on which --seeds has no effect: leave out one of them")
        if line.negative and wanted.guidance == 1:
            raise UsageError(f"{where}: negative has no effect with --guidance 1: raise the guidance or leave it out")
    for flag, given, own in (
        ("--seed", wanted.seeds, [line.seed for line in lines]),
        ("--negative", wanted.negative, [line.negative for line in lines]),
    ):
        if given and None not in own:
            raise UsageError(f"{flag} has no effect: each line of {wanted.prompts} has its own; leave it out")


def _seeds(wanted: Drawing) -> tuple[int, ...]:
    return wanted.seeds or (0,)


def _of_line(line: Line, place: int, wanted: Drawing) -> Iterator[Request]:
    negative = wanted.negative if line.negative is None else line.negative
    if line.seed is not None:
        yield Request(prompt=line.prompt, negative=negative, seed=line.seed)
        return
    for seed in _seeds(wanted):
        yield Request(prompt=line.prompt, negative=negative, seed=seed, place=place)


def _drawn(wanted: Drawing, planned: Plan, missing: Sequence[Request]) -> Iterator[Image.Image]:
    if not missing:
        return iter(())
    pipeline = sampling.load(wanted.pipeline)
    if planned.stages is None:
        return textless.either(pipeline, missing, planned.settings)
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UsageError(
            "this model was trained without text, and is drawn from in one way: leave out --image and --upscale"
        )
    return stages.drawn(pipeline, missing, planned.settings, planned.stages)


def _own(request: Request) -> dict[str, Any]:
    """What a picture has for itself."""
    return {
        "prompt": request.prompt or "",
        "negative": request.negative,
        "seed": request.seed,
        "place": request.place,
    }


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _is_there(file: Path, about: Mapping[str, Any]) -> bool:
    """Whether the picture lies in `file`.

    Raises:
        UsageError: when something else lies there.
    """
    if not file.exists():
        return False
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            found = json.loads(picture.text["settings"])  # type: ignore[attr-defined]  # PngImageFile has it
        other = sorted(name for name in {*found, *about} - _PLACES if found.get(name) != about.get(name))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} was not drawn by this command: {_MEND}") from error
    if other:
        raise UsageError(f"{file} is there, drawn with another {' and '.join(other)}: {_MEND}")
    return True


def _read(folder: Path | None, number: int) -> Image.Image:
    assert folder is not None
    file = _file(folder, number)
    try:
        return load(file.read_bytes(), ("PNG",), _SIDE_LIMIT)
    except (OSError, Undecodable) as error:
        raise UsageError(f"{file} cannot be read ({error}): delete it, and it is drawn again") from error


def _save_grid(wanted: Drawing, planned: Plan, every: Sequence[Image.Image]) -> None:
    assert wanted.output is not None
    many = len({one.seed for one in planned.requests}) > 1
    captions = [
        f"{one.prompt or ''} (seed {one.seed})".lstrip() if many else one.prompt or "" for one in planned.requests
    ]
    columns = wanted.columns or (len(wanted.seeds) if len(wanted.seeds) > 1 else 0)
    grid.save(wanted.output, grid.captioned(every, captions, columns), summary(planned))
