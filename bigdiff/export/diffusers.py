"""A checkpoint of a run as a diffusers pipeline folder, checked before it takes its name.

With text a `StableDiffusionPipeline`; without, an `LDMPipeline` where there is a VAE and a `DDPMPipeline` where not.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.reader import Damaged
from bigdiff.checkpoint.weights import complete
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load
from bigdiff.config.rules import check
from bigdiff.config.schema import Diffusion, Stage
from bigdiff.export.card import card
from bigdiff.models.components import AnyUNet, build_unet, load_text_encoder, load_tokenizer, load_vae
from bigdiff.runtime.files import TEMPORARY, replacing, sync, write_bytes

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Pipeline: TypeAlias = StableDiffusionPipeline | LDMPipeline | DDPMPipeline
EPS_TOLERANCE: Final = 1e-6  # of the loaded UNet's prediction against the source's, in float32
INDEX: Final = "model_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is exported: a stage, one of its checkpoints and that checkpoint's weights."""

    run: Path
    stage: Stage
    checkpoint: Path
    which: str  # what the weights are, in words
    weights: dict[str, Tensor]  # "unet.*" and, where the text encoder was trained, "text_encoder.*"


def export(run: Path, output: Path, weights: str = "ema", dtype: str = "float32", step: int = 0) -> Source:
    """Write a checkpoint of `run` to `output` as a pipeline folder and return what was exported; as `read` and `write`.

    Raises:
        UsageError, RunError: as these.
    """
    _refuse(output, dtype)  # before minutes of reading
    source = read(run, weights, step)
    write(source, output, dtype)
    return source


def _refuse(output: Path, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    if output.exists() and not (output / INDEX).is_file() and any(output.iterdir()):
        raise UsageError(f"{output} holds something else than a pipeline: choose another output folder")


def write(source: Source, output: Path, dtype: str) -> None:
    """Write `source` to `output` as a pipeline folder.

    Raises:
        UsageError: when `output` holds something else than an earlier export, or the weights are not the stage's.
        RunError: when the written folder does not load back to the same tensors and the same eps.
    """
    _refuse(output, dtype)
    pipeline = build(source).to(DTYPES[dtype])
    with replacing_folder(output) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        if isinstance(pipeline, StableDiffusionPipeline):
            write_vocabulary(pipeline.tokenizer, folder / "tokenizer")
            write_text_encoder(pipeline.text_encoder, folder / "text_encoder")
        text = card(source.run, source.stage, source.checkpoint, source.which, dtype)
        write_bytes(folder / "README.md", text.encode())
        verify(pipeline, folder)


def read(run: Path, weights: str, step: int = 0) -> Source:
    """The stage of a run folder, and `weights` (bigdiff.config.averages) of its checkpoint of `step`.

    Without a step of the newest undamaged one.

    Raises:
        UsageError: when there is none, or it does not hold these.
    """
    file = run / layout.CONFIG
    if not file.is_file():
        raise UsageError(f"{run} is not a run folder: it has no {layout.CONFIG}; train the stage first")
    stage = check(load(Stage, [file]))
    problems = [f"{layout.checkpoints(run)} has no checkpoint"]
    saved = layout.saved(run)
    asked = [one for one in saved if layout.step_of(one) == step] if step else saved
    if saved and not asked:
        steps = ", ".join(str(layout.step_of(one)) for one in reversed(saved))
        raise UsageError(f"{run} has no checkpoint of step {step}: it has those of {steps}")
    for checkpoint in asked:
        try:
            found = complete(checkpoint, weights)
        except Damaged as error:  # the one before it is used
            problems.append(str(error))
            continue
        return Source(run=run, stage=stage, checkpoint=checkpoint, which=found.about, weights=found.tensors)
    raise UsageError(f"{run} cannot be exported: {problems[-1]}; train the stage first")


def build(source: Source) -> Pipeline:
    """The pipeline of `source` in float32 on the CPU.

    Raises:
        UsageError: when the checkpoint's parameters are not those of the stage's networks.
    """
    stage = source.stage
    with torch.device("meta"):
        unet = build_unet(stage.model.unet, stage.latent_size)
    put(source, "unet.", unet)
    unet.requires_grad_(False).eval()
    vae = load_vae(stage.model.vae.source) if stage.model.vae else None
    if stage.model.text is None:
        if vae is None:
            return DDPMPipeline(unet=unet, scheduler=pixel_scheduler(stage.diffusion))
        return LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler(stage.diffusion))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(source),
        tokenizer=load_tokenizer(stage.model.text.tokenizer, stage.model.text.max_length),
        unet=unet,
        scheduler=scheduler(stage.diffusion),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def text_encoder(source: Source) -> CLIPTextModel:
    """The one that the run trained or took over, or the one that it began with.

    Raises:
        UsageError: as `build`.
    """
    assert source.stage.model.text is not None, "asked for without text"
    found = load_text_encoder(source.stage.model.text.encoder)
    if any(name.startswith("text_encoder.") for name in source.weights):
        put(source, "text_encoder.", found)
    return found


def put(source: Source, prefix: str, module: nn.Module) -> None:
    """Give `module` the weights of `source` whose names begin with `prefix`; all of them, where it has none yet."""
    part = {name.removeprefix(prefix): one for name, one in source.weights.items() if name.startswith(prefix)}
    bare = any(one.is_meta for one in module.parameters())
    try:
        unknown = module.load_state_dict(part, strict=bare, assign=True).unexpected_keys
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{source.checkpoint} does not fit {source.run / layout.CONFIG}: {reason}") from error
    if unknown:
        raise UsageError(f"{source.checkpoint} does not fit {source.run / layout.CONFIG}: {prefix}{unknown[0]}")


def scheduler(diffusion: Diffusion) -> DDIMScheduler:
    """DDIM (Song et al. 2021) on the stage's betas; clipping, last alpha and step offset as SD 1.x ships them.

    With zero terminal SNR sampling starts at the last timestep, where it was trained to (Lin et al. 2024, section 3.3).
    """
    return DDIMScheduler(
        num_train_timesteps=diffusion.train_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=diffusion.beta_schedule,
        prediction_type=diffusion.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
        timestep_spacing="trailing" if diffusion.zero_terminal_snr else "leading",
    )


def pixel_scheduler(diffusion: Diffusion) -> DDPMScheduler:
    """Ho et al. 2020, algorithm 2, on the stage's betas, for models of the pixels: x_0 is clipped to their range."""
    return DDPMScheduler(
        num_train_timesteps=diffusion.train_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=diffusion.beta_schedule,
        prediction_type=diffusion.prediction_type,
        clip_sample=True,
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
        timestep_spacing="trailing" if diffusion.zero_terminal_snr else "leading",
    )


def preview_scheduler(stage: Stage) -> DDIMScheduler:
    """DDIM as launch/sample.py uses it by default on what `stage` exports."""
    own = scheduler(stage.diffusion) if stage.model.vae else pixel_scheduler(stage.diffusion)
    return DDIMScheduler.from_config(own.config)


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json, for readers that know only these."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    write_bytes(folder / "vocab.json", json.dumps(model["vocab"]).encode())
    write_bytes(folder / "merges.txt", ("#version: 0.2\n" + "\n".join(merges) + "\n").encode())


def write_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """model.safetensors with the names of published files, which all versions of transformers read.

    Since 5.6 it writes them without "text_model."; versions before then warn and go on with random weights.
    """
    stored = text_encoder.state_dict().items()
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in stored}
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def verify(source: Pipeline, folder: Path) -> None:
    """Load `folder` with stock diffusers and compare every tensor and one prediction with `source`.

    Raises:
        RunError: naming the first difference.
    """
    loaded = type(source).from_pretrained(
        folder, torch_dtype=source.unet.dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    compare(source, loaded, folder)


def compare(source: Pipeline, loaded: Pipeline, folder: Path) -> None:
    """Every tensor, two captions' tokens and one prediction of what was loaded from `folder` with those of `source`.

    Raises:
        RunError: naming the first difference.
    """
    networks = [part for part, one in source.components.items() if isinstance(one, nn.Module)]
    for part in networks:
        wanted, found = getattr(source, part).state_dict(), getattr(loaded, part).state_dict()
        if wanted.keys() != found.keys():
            raise RunError(f"{folder}: {part} loads with other tensors than it was written with")
        other = [name for name, tensor in wanted.items() if not torch.equal(tensor, found[name])]
        if other:
            raise RunError(f"{folder}: {part} loads with another {other[0]} than it was written with")
    if isinstance(source, StableDiffusionPipeline):
        texts = ["", "a red circle"]
        if source.tokenizer(texts)["input_ids"] != loaded.tokenizer(texts)["input_ids"]:
            raise RunError(f"{folder}: the tokenizer loads with other ids than it was written with")
    difference = float((prediction(source.unet) - prediction(loaded.unet)).abs().max())
    if not difference <= EPS_TOLERANCE:
        raise RunError(f"{folder}: the loaded UNet's prediction differs by {difference:.1e}, over {EPS_TOLERANCE}")


@torch.inference_mode()
def prediction(unet: AnyUNet) -> Tensor:
    """What `unet` predicts for fixed noise, one timestep and fixed states, if it takes any, as float32.

    On two pixels a side at the lowest resolution: in fp16 on a CPU SD v1's own size would take many minutes.
    """
    generator = torch.Generator().manual_seed(0)
    size, channels = 2 ** len(unet.config["block_out_channels"]), unet.config["in_channels"]
    noise = torch.randn(1, channels, size, size, generator=generator)
    states = []
    if isinstance(unet, UNet2DConditionModel):
        states = [torch.randn(1, 4, unet.config["cross_attention_dim"], generator=generator).to(unet.dtype)]
    result: Tensor = unet(noise.to(unet.dtype), 500, *states).sample
    return result.float()


@contextmanager
def replacing_folder(output: Path) -> Iterator[Path]:
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
