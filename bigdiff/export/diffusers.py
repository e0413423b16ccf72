"""A run's newest checkpoint as a diffusers `StableDiffusionPipeline` folder, checked before it takes its name."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from bigdiff.checkpoint import layout, store
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load
from bigdiff.config.rules import check
from bigdiff.config.schema import Diffusion, Stage
from bigdiff.export.card import card
from bigdiff.models.components import build_unet, load_text_encoder, load_tokenizer, load_vae
from bigdiff.runtime.files import TEMPORARY, sync, write_bytes

Weights = Literal["ema", "raw"]
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPS_TOLERANCE: Final = 1e-6  # of the loaded UNet's prediction against the source's, in float32
INDEX: Final = "model_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is exported: a stage, one of its checkpoints and that checkpoint's weights."""

    run: Path
    stage: Stage
    checkpoint: Path
    which: Weights
    weights: dict[str, Tensor]  # "unet.*" and, where the text encoder was trained, "text_encoder.*"


def export(run: Path, output: Path, weights: Weights = "ema", dtype: str = "float32") -> Path:
    """Write the newest undamaged checkpoint of `run` to `output` as a pipeline folder and return that checkpoint.

    Raises:
        UsageError: when `run` has no checkpoint, or `output` holds something else than an earlier export.
        RunError: when the written folder does not load back to the same tensors and the same eps.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    if output.exists() and not (output / INDEX).is_file() and any(output.iterdir()):
        raise UsageError(f"{output} holds something else than a pipeline: choose another output folder")
    source = read(run, weights)
    pipeline = build(source).to(DTYPES[dtype])
    with _aside(output) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        write_vocabulary(pipeline.tokenizer, folder / "tokenizer")
        write_bytes(folder / "README.md", card(source.run, source.stage, source.checkpoint, weights, dtype).encode())
        verify(pipeline, folder)
    return source.checkpoint


def read(run: Path, which: Weights) -> Source:
    """The stage and the newest undamaged checkpoint of the run folder `run`.

    Raises:
        UsageError: when there is none.
    """
    file = run / layout.CONFIG
    if not file.is_file():
        raise UsageError(f"{run} is not a run folder: it has no {layout.CONFIG}; train the stage first")
    stage = check(load(Stage, [file]))
    problems = [f"{layout.checkpoints(run)} has no checkpoint"]
    for checkpoint in layout.saved(run):
        try:
            weights = store.read_weights(checkpoint, which)
        except UsageError as error:  # damaged: the one before it is used
            problems.append(str(error))
            continue
        return Source(run=run, stage=stage, checkpoint=checkpoint, which=which, weights=weights)
    raise UsageError(f"{run} cannot be exported: {problems[-1]}; train the stage first")


def build(source: Source) -> StableDiffusionPipeline:
    """The pipeline of `source` in float32 on the CPU.

    Raises:
        UsageError: when the checkpoint's parameters are not those of the stage's networks.
    """
    stage = source.stage
    with torch.device("meta"):
        unet = build_unet(stage.model.unet, stage.latent_size)
    text_encoder = load_text_encoder(stage.model.text.encoder)
    for prefix, module in (("unet.", unet), ("text_encoder.", text_encoder)):
        part = {name.removeprefix(prefix): one for name, one in source.weights.items() if name.startswith(prefix)}
        if not part and prefix == "text_encoder.":
            continue  # it was frozen and is as it was loaded
        try:
            module.load_state_dict(part, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"{source.checkpoint} does not fit {source.run / layout.CONFIG}: {reason}") from error
    return StableDiffusionPipeline(
        vae=load_vae(stage.model.vae.source),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(stage.model.text.tokenizer, stage.model.text.max_length),
        unet=unet.requires_grad_(False).eval(),
        scheduler=scheduler(stage.diffusion),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def scheduler(diffusion: Diffusion) -> DDIMScheduler:
    """DDIM (Song et al. 2021) on the stage's betas; clipping, last alpha and step offset as SD 1.x ships them."""
    return DDIMScheduler(
        num_train_timesteps=diffusion.train_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=diffusion.beta_schedule,
        prediction_type=diffusion.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json, for readers that know only these."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    write_bytes(folder / "vocab.json", json.dumps(model["vocab"]).encode())
    write_bytes(folder / "merges.txt", ("#version: 0.2\n" + "\n".join(merges) + "\n").encode())


def verify(source: StableDiffusionPipeline, folder: Path) -> None:
    """Load `folder` with stock diffusers and compare every tensor and one prediction with `source`.

    Raises:
        RunError: naming the first difference.
    """
    loaded = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=source.unet.dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    for part in ("unet", "vae", "text_encoder"):
        wanted, found = getattr(source, part).state_dict(), getattr(loaded, part).state_dict()
        if wanted.keys() != found.keys():
            raise RunError(f"{folder}: {part} loads with other tensors than it was written with")
        other = [name for name, tensor in wanted.items() if not torch.equal(tensor, found[name])]
        if other:
            raise RunError(f"{folder}: {part} loads with another {other[0]} than it was written with")
    texts = ["", "a red circle"]
    if source.tokenizer(texts)["input_ids"] != loaded.tokenizer(texts)["input_ids"]:
        raise RunError(f"{folder}: the tokenizer loads with other ids than it was written with")
    difference = float((prediction(source.unet) - prediction(loaded.unet)).abs().max())
    if not difference <= EPS_TOLERANCE:
        raise RunError(f"{folder}: the loaded UNet's prediction differs by {difference:.1e}, over {EPS_TOLERANCE}")


@torch.inference_mode()
def prediction(unet: UNet2DConditionModel) -> Tensor:
    """What `unet` predicts for fixed noise, one timestep and fixed states, as float32."""
    generator = torch.Generator().manual_seed(0)
    size, channels, width = (unet.config[key] for key in ("sample_size", "in_channels", "cross_attention_dim"))
    noise = torch.randn(1, channels, size, size, generator=generator)
    states = torch.randn(1, 4, width, generator=generator)
    result: Tensor = unet(noise.to(unet.dtype), 500, states.to(unet.dtype)).sample
    return result.float()


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A folder that takes `output`'s name when all went well, in place of an earlier export."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for leftover in output.parent.glob(f"{output.name}.*{TEMPORARY}"):
        shutil.rmtree(leftover)  # of an export that was killed
    aside, old = (output.with_name(f"{output.name}.{what}{TEMPORARY}") for what in ("new", "old"))
    try:
        yield aside
        for path in aside.rglob("*"):
            sync(path)
        if output.exists():
            output.rename(old)
        aside.rename(output)
        sync(output.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
