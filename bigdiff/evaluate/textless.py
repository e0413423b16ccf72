"""Pictures from a diffusers pipeline without text: `DDPMPipeline` on pixels, `LDMPipeline` on latents."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDPMPipeline, LDMPipeline, StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import sampling
from bigdiff.evaluate.sampling import (
    SCHEDULERS,
    Pipeline,
    Request,
    Sampling,
    as_pictures,
    check,
    generator,
    parts,
    refuse_steps,
    refuse_unfit,
)

# what these pipelines can call: DDPMPipeline scales no input and hands on a generator, LDMPipeline hands on none
PIXELS: Final = ("ddim", "ddpm", "dpm++")
LATENTS: Final = ("ddim", "pndm", "euler", "heun", "dpm++", "unipc")


def either(
    pipeline: Pipeline, wanted: Sequence[Request], settings: Sampling, bar: bool = True
) -> Iterator[Image.Image]:
    """The pictures of `wanted`, in their order: of prompts from a pipeline with text, of none from one without.

    Raises:
        UsageError: when what is given is not what the pipeline takes, or as `sampling.drawn` and `draw`.
    """
    counted = any(one.prompt is None for one in wanted)
    if isinstance(pipeline, StableDiffusionPipeline):
        if counted:
            raise UsageError("this model draws what a text says: give prompts, not a count")
        return sampling.drawn(pipeline, wanted, settings, bar)
    if not counted:
        raise UsageError("this model was trained without text: give a count of pictures, not prompts")
    return drawn(pipeline, wanted, settings, bar)


def draw(
    pipeline: DDPMPipeline | LDMPipeline, count: int, settings: Sampling, first: int = 0, bar: bool = True
) -> list[Image.Image]:
    """`count` pictures from number `first` on; picture k depends on the seed and k, not on the batch (to rounding).

    Raises:
        UsageError: for settings that the pipeline cannot take, or that have no effect without text, or pictures that
            are not finite.
    """
    if count <= 0:
        raise UsageError(f"count={count} must be positive: this model draws without text, so say how many pictures")
    wanted = [Request(prompt=None, seed=settings.seed, place=place) for place in range(first, first + count)]
    return list(drawn(pipeline, wanted, settings, bar))


def drawn(
    pipeline: DDPMPipeline | LDMPipeline, wanted: Sequence[Request], settings: Sampling, bar: bool = True
) -> Iterator[Image.Image]:
    """The pictures of `wanted`, in their order, as soon as each batch is there; seeds are those of `wanted`.

    Raises:
        UsageError: as `draw`, before the first picture where it can be known.
    """
    refuse(pipeline, settings)
    pipeline.scheduler = SCHEDULERS[settings.scheduler].from_config(pipeline.scheduler.config)
    # LDMPipeline takes the noise's scale before it sets the timesteps on which that depends (euler, heun)
    pipeline.scheduler.set_timesteps(settings.steps)
    with tqdm(total=len(wanted), unit=" images", desc="sample", disable=not bar) as shown:
        for part in parts(wanted, settings.batch):
            made = as_pictures(pipeline, _values(pipeline, part, settings.steps), [one.place for one in part])
            yield from (picture.convert("RGB") for picture in made)
            shown.update(len(part))


@torch.inference_mode()
def _values(pipeline: DDPMPipeline | LDMPipeline, part: Sequence[Request], steps: int) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = pipeline(
        batch_size=len(part),
        generator=[generator(one.seed, one.place) for one in part],
        num_inference_steps=steps,
        output_type="np",
    ).images
    return values


def refuse(pipeline: DDPMPipeline | LDMPipeline, settings: Sampling) -> None:
    """Raise a UsageError for the first setting that cannot work."""
    check(settings)
    refuse_unfit(settings.scheduler, pipeline.scheduler.config)
    refuse_steps(settings.steps, pipeline.scheduler.config)
    known = LATENTS if isinstance(pipeline, LDMPipeline) else PIXELS
    if settings.scheduler not in known:
        raise UsageError(
            f"scheduler {settings.scheduler} does not work with a {type(pipeline).__name__}: take {' or '.join(known)}"
        )
    unused = {
        "guidance": settings.guidance != Sampling().guidance,
        "a negative prompt": bool(settings.negative_prompt),
        "another size": bool(settings.height or settings.width),
    }
    for what, given in unused.items():
        if given:
            raise UsageError(f"{what} has no effect on a model without text: leave it out")
