"""Pictures from a diffusers pipeline without text: `DDPMPipeline` on pixels, `LDMPipeline` on latents."""

from collections.abc import Sequence
from typing import Final

import torch
from diffusers import DDPMPipeline, LDMPipeline, StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.evaluate.sampling import (
    SCHEDULERS,
    Pipeline,
    Sampling,
    as_pictures,
    check,
    generator,
    refuse_steps,
    refuse_unfit,
    sample,
)

# what these pipelines can call: DDPMPipeline scales no input and hands on a generator, LDMPipeline hands on none
PIXELS: Final = ("ddim", "ddpm", "dpm++")
LATENTS: Final = ("ddim", "pndm", "euler", "heun", "dpm++", "unipc")


def either(pipeline: Pipeline, prompts: Sequence[str], count: int | None, settings: Sampling) -> list[Image.Image]:
    """A picture for each of `prompts` from a pipeline with text or, with a `count`, so many from one without.

    Raises:
        UsageError: when what is given is not what the pipeline takes, or as `sample` and `draw`.
    """
    if isinstance(pipeline, StableDiffusionPipeline):
        if count is not None:
            raise UsageError("this model draws what a text says: give prompts, not a count")
        return sample(pipeline, prompts, settings)
    if count is None:
        raise UsageError("this model was trained without text: give a count of pictures, not prompts")
    return draw(pipeline, count, settings)


def draw(
    pipeline: DDPMPipeline | LDMPipeline, count: int, settings: Sampling, first: int = 0, bar: bool = True
) -> list[Image.Image]:
    """`count` pictures from number `first` on; picture k depends on the seed and k, not on the batch (to rounding).

    Raises:
        UsageError: for settings that the pipeline cannot take, or that have no effect without text, or pictures that
            are not finite.
    """
    refuse(pipeline, count, settings)
    pipeline.scheduler = SCHEDULERS[settings.scheduler].from_config(pipeline.scheduler.config)
    # LDMPipeline takes the noise's scale before it sets the timesteps on which that depends (euler, heun)
    pipeline.scheduler.set_timesteps(settings.steps)
    pictures: list[Image.Image] = []
    with tqdm(total=count, unit=" images", desc="sample", disable=not bar) as shown, torch.inference_mode():
        for start in range(0, count, settings.batch):
            part = min(settings.batch, count - start)
            values = pipeline(
                batch_size=part,
                generator=[generator(settings.seed, first + start + place) for place in range(part)],
                num_inference_steps=settings.steps,
                output_type="np",
            ).images
            pictures += as_pictures(pipeline, values, first + start)
            shown.update(part)
    return [picture.convert("RGB") for picture in pictures]


def refuse(pipeline: DDPMPipeline | LDMPipeline, count: int, settings: Sampling) -> None:
    """Raise a UsageError for the first setting that cannot work."""
    check(settings)
    refuse_unfit(settings.scheduler, pipeline.scheduler.config)
    refuse_steps(settings.steps, pipeline.scheduler.config)
    known = LATENTS if isinstance(pipeline, LDMPipeline) else PIXELS
    if settings.scheduler not in known:
        raise UsageError(
            f"scheduler {settings.scheduler} does not work with a {type(pipeline).__name__}: take {' or '.join(known)}"
        )
    if count <= 0:
        raise UsageError(f"count={count} must be positive: this model draws without text, so say how many pictures")
    unused = {
        "guidance": settings.guidance != Sampling().guidance,
        "a negative prompt": bool(settings.negative_prompt),
        "another size": bool(settings.height or settings.width),
    }
    for what, given in unused.items():
        if given:
            raise UsageError(f"{what} has no effect on a model without text: leave it out")
