"""Pictures from prompts with a diffusers pipeline: any scheduler, guidance, the same picture whatever the batch."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from bigdiff.config.errors import UsageError

UNRESCALED: Final = ("pndm", "heun")  # diffusers gives these no betas with zero terminal SNR
Pipeline: TypeAlias = StableDiffusionPipeline | LDMPipeline | DDPMPipeline
SCHEDULERS: Final[dict[str, Any]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How pictures are drawn."""

    steps: int = 20
    guidance: float = 3.0  # 1 is the model alone, without classifier-free guidance (Ho & Salimans 2022)
    negative_prompt: str = ""
    scheduler: str = "ddim"
    seed: int = 0
    batch: int = 8  # pictures at a time; does not change them
    height: int = 0  # pixels; 0 is the model's own size
    width: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One picture that is wanted."""

    prompt: str | None  # None: of a model without text
    negative: str = ""
    seed: int = 0
    place: int = 0  # among the pictures of its seed: with the seed it says which noise


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """The pipeline in `folder`, computing in `dtype`, on the GPU when there is one.

    Raises:
        UsageError: when it is not a pipeline folder, of a kind that is not known here, or cannot be loaded.
    """
    kind = kind_of(folder)
    diffusers_logging.disable_progress_bar()  # bars for a second's work; the pictures have their own
    transformers_logging.disable_progress_bar()
    try:
        beside = {"safety_checker": None} if kind is StableDiffusionPipeline else {}
        pipeline: Pipeline = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, **beside
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{folder} cannot be loaded as a {kind.__name__}: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def kind_of(folder: Path) -> Any:  # noqa: ANN401 (diffusers is untyped)
    """The class of the pipeline in `folder`.

    Raises:
        UsageError: as `load`.
    """
    file = folder / "model_index.json"
    try:
        name = json.loads(file.read_bytes())["_class_name"]
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not a pipeline: it has no model_index.json; write one with launch/export.py"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error!r}): export the pipeline again") from error
    known: dict[str, Any] = {kind.__name__: kind for kind in (StableDiffusionPipeline, LDMPipeline, DDPMPipeline)}
    if name not in known:
        raise UsageError(f"{folder} is a {name}, and only {', '.join(known)} are drawn from here")
    return known[name]


def sample(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], settings: Sampling, first: int = 0, bar: bool = True
) -> list[Image.Image]:
    """One picture for each of `prompts`; the picture of prompt k depends on the seed and k, not on the batch.

    `prompts` are those from number `first` on. (To rounding: a convolution over another batch may differ in the last
    bit, so a pixel may by one level.)

    Raises:
        UsageError: for settings that the scheduler or the model cannot take, or pictures that are not finite.
    """
    wanted = [
        Request(prompt=prompt, negative=settings.negative_prompt, seed=settings.seed, place=place)
        for place, prompt in enumerate(prompts, first)
    ]
    return list(drawn(pipeline, wanted, settings, bar))


def drawn(
    pipeline: StableDiffusionPipeline, wanted: Sequence[Request], settings: Sampling, bar: bool = True
) -> Iterator[Image.Image]:
    """The pictures of `wanted`, in their order, as soon as each batch is there.

    Negative prompts and seeds are those of `wanted`.

    Raises:
        UsageError: as `sample`, before the first picture where it can be known.
    """
    check(settings)
    refuse_unfit(settings.scheduler, pipeline.scheduler.config)
    refuse_steps(settings.steps, pipeline.scheduler.config)
    pipeline.scheduler = SCHEDULERS[settings.scheduler].from_config(pipeline.scheduler.config)
    with tqdm(total=len(wanted), unit=" images", desc="sample", disable=not bar) as shown:
        for part in parts(wanted, settings.batch):
            yield from as_pictures(pipeline, _values(pipeline, part, settings), [one.place for one in part])
            shown.update(len(part))


def parts(wanted: Sequence[Request], batch: int) -> Iterator[Sequence[Request]]:
    """`wanted` in batches."""
    return (wanted[start : start + batch] for start in range(0, len(wanted), batch))


@torch.inference_mode()
def _values(pipeline: StableDiffusionPipeline, part: Sequence[Request], settings: Sampling) -> npt.NDArray[np.float32]:
    try:
        values: npt.NDArray[np.float32] = pipeline(
            prompt=[one.prompt for one in part],
            negative_prompt=[one.negative for one in part],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=[generator(one.seed, one.place) for one in part],
            height=settings.height or None,
            width=settings.width or None,
            output_type="np",
        ).images
    except ValueError as error:
        raise UsageError(f"the pipeline refuses these settings: {' '.join(str(error).split())}") from error
    return values


def as_pictures(pipeline: Pipeline, values: npt.NDArray[Any], numbers: Sequence[int]) -> list[Image.Image]:
    """What a pipeline drew, [B, H, W, C] from 0 to 1, in 8 bits; `numbers` [B] are the pictures'.

    Raises:
        UsageError: when one is not finite: in 8 bits it would be a black picture like any other.
    """
    broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))
    if len(broken):
        raise UsageError(
            f"picture {numbers[broken[0]]} has values that are not finite: the weights are damaged, or their type is "
            f"too narrow for this model; export another checkpoint, or with --dtype float32"
        )
    made: list[Image.Image] = pipeline.numpy_to_pil(values)
    return made


def check(settings: Sampling) -> None:
    """Raise a UsageError for the first setting that cannot work."""
    if settings.scheduler not in SCHEDULERS:
        raise UsageError(f"scheduler {settings.scheduler!r} is unknown: take one of {', '.join(SCHEDULERS)}")
    for name in ("steps", "batch"):
        if getattr(settings, name) <= 0:
            raise UsageError(f"{name}={getattr(settings, name)} must be positive")
    if settings.guidance < 1:
        raise UsageError(f"guidance={settings.guidance} must be at least 1, which is no guidance")
    if settings.negative_prompt and settings.guidance == 1:
        raise UsageError("a negative prompt has no effect with guidance=1: raise the guidance or leave it out")


def refuse_unfit(scheduler: str, trained: Mapping[str, Any]) -> None:
    """Raise a UsageError when `scheduler` cannot sample a model whose own scheduler has the config `trained`."""
    others = ", ".join(name for name in SCHEDULERS if name not in UNRESCALED)
    if scheduler == "pndm" and trained.get("prediction_type") == "sample":
        raise UsageError(f"scheduler pndm knows no model that predicts the sample: take one of {others}")
    if scheduler in UNRESCALED and trained.get("rescale_betas_zero_snr"):
        raise UsageError(f"scheduler {scheduler} knows no zero terminal SNR, this model's: take one of {others}")


def refuse_steps(steps: int, trained: Mapping[str, Any]) -> None:
    """Raise a UsageError for more steps than the timesteps of a model whose own scheduler has the config `trained`."""
    if steps > trained["num_train_timesteps"]:
        raise UsageError(f"steps={steps} are more than the {trained['num_train_timesteps']} timesteps of this model")


def generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of picture `index`: on the CPU, so that every device draws the same noise."""
    # torch's CPU generator looks at 32 bits of its seed, so both numbers are mixed into them
    mixed = hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4]
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little"))


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line.

    Raises:
        UsageError: when it cannot be read as UTF-8, holds none, or has an empty line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompts in {path}: {error}") from error
    if not lines:
        raise UsageError(f"{path} holds no prompts: write one a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UsageError(f"{path} line {number} is empty: write one prompt a line")
    return [line.strip() for line in lines]
