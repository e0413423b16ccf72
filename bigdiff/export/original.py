"""A run's newest checkpoint as one file in the original code's layout, checked before it takes its name.

The original code (CompVis/stable-diffusion) and the common interfaces read it. Beside `model.safetensors` lie
`model.yaml`, which AUTOMATIC1111's looks for under this name and ComfyUI and diffusers do without, and `model.md`, the
card. There is no `model_ema.*`: the file has one kind of weights, which were chosen, under the names that all read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from bigdiff.config.errors import RunError, UsageError
from bigdiff.export.card import facts
from bigdiff.export.diffusers import DTYPES, EPS_TOLERANCE, Source, build, compare
from bigdiff.export.latent_diffusion import buffers, configuration, untold
from bigdiff.models import encoders, original
from bigdiff.models.original import Places, to_original
from bigdiff.models.original_settings import attends
from bigdiff.runtime.files import replacing, write_bytes

SUFFIX: Final = ".safetensors"
_OURS: Final = "bigdiff"  # key of the file's metadata, which says what it was made of
_BESIDE: Final = (".yaml", ".md")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a reader of the file must know that it does not say, a clause each."""

    untold: tuple[str, ...]


def export(source: Source, output: Path, dtype: str = "float32") -> Written:
    """Write `source` to the file `output`, with its configuration and its card beside it.

    Raises:
        UsageError: when `output` is something else than an earlier export, or the original code has no such networks.
        RunError: when the written file does not load back to the same tensors, eps, picture and text states.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    replaceable(output)
    stage = source.stage
    if stage.model.text is None or stage.model.vae is None:
        raise UsageError(f"{stage.name} is not trained on text, which the original layout is for: keep to diffusers'")
    pipeline = build(source)
    yaml = configuration(stage, pipeline.vae)  # before the long part: it may refuse
    written = Written(untold=tuple(untold(stage, pipeline.text_encoder.config)))
    pipeline.to(DTYPES[dtype])
    content = tensors(source, pipeline)
    with replacing(output) as temporary:
        save_file(content, temporary, metadata={"format": "pt", _OURS: source.checkpoint.name})
        verify_tensors(content, temporary)
        verify(pipeline, temporary)
    write_bytes(output.with_suffix(".yaml"), yaml.encode())
    write_bytes(output.with_suffix(".md"), card(source, dtype, output, written).encode())
    return written


def replaceable(output: Path) -> None:
    """Raise a UsageError when `output` cannot be written, or something else lies there."""
    if output.suffix != SUFFIX:
        raise UsageError(f"{output} must end in {SUFFIX}: the original layout is one file")
    if output.exists():
        if not _ours(output):
            raise UsageError(f"{output} is something else than an earlier export: choose another output file")
        return
    taken = [output.with_suffix(end) for end in _BESIDE if output.with_suffix(end).exists()]
    if taken:
        raise UsageError(f"{taken[0]} is there without {output}, and would be replaced: choose another output file")


def tensors(source: Source, pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All that the file holds, by the original's names; the networks' tensors are views."""
    found = buffers(source.stage.diffusion)  # fp32 in any case: fp16 has no small betas
    for part, places in placed(source, pipeline).items():
        found |= to_original(places, getattr(pipeline, part).state_dict())
    length = pipeline.text_encoder.config.max_position_embeddings
    found[original.POSITIONS] = torch.arange(length).expand(1, -1).contiguous()
    return found


def placed(source: Source, pipeline: StableDiffusionPipeline) -> dict[str, Places]:
    """Where the tensors of each network of `pipeline` lie, by the name of its part."""
    unet, vae = source.stage.model.unet, pipeline.vae.config
    shapes = {part: _shapes(getattr(pipeline, part)) for part in ("unet", "vae", "text_encoder")}
    return {
        "unet": original.unet_places(shapes["unet"], attends(unet), unet.layers_per_block),
        "vae": original.vae_places(shapes["vae"], len(vae["block_out_channels"]), vae["layers_per_block"]),
        "text_encoder": original.text_places(shapes["text_encoder"]),
    }


def verify_tensors(content: Mapping[str, Tensor], file: Path) -> None:
    """Raise a RunError when `file` has other tensors than `content`, bit for bit."""
    with safe_open(file, framework="pt") as stored:
        other = sorted(content.keys() ^ set(stored.keys())) or [
            name for name, tensor in content.items() if not torch.equal(stored.get_tensor(name), tensor)
        ]
    if other:
        raise RunError(f"{file}: {other[0]} is read back otherwise than it was written")


def verify(pipeline: StableDiffusionPipeline, file: Path) -> None:
    """Load `file` with stock diffusers; compare every tensor, eps, a decoded picture and text states with `pipeline`.

    Raises:
        RunError: naming the first difference.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _describe(pipeline, folder)
        link = folder / f"written{SUFFIX}"  # diffusers goes by the name's end, which a temporary file has not
        link.symlink_to(file.absolute())
        loaded = StableDiffusionPipeline.from_single_file(
            str(link), config=str(folder), torch_dtype=pipeline.unet.dtype, local_files_only=True
        )
    compare(pipeline, loaded, file)
    pairs = {
        "autoencoder's picture": [picture(one.vae) for one in (pipeline, loaded)],
        "text encoder's states": [states(one.text_encoder) for one in (pipeline, loaded)],
    }
    for what, (wanted, found) in pairs.items():
        difference = float((wanted - found).abs().max())
        if not difference <= EPS_TOLERANCE:
            raise RunError(f"{file}: the loaded {what} differ by {difference:.1e}, over {EPS_TOLERANCE}")


@torch.inference_mode()
def picture(vae: AutoencoderKL) -> Tensor:
    """What `vae` decodes of fixed latents of a few pixels, as float32."""
    latents = torch.randn(1, vae.config["latent_channels"], 8, 8, generator=torch.Generator().manual_seed(0))
    return encoders.decode(vae, latents.to(vae.dtype)).float()


@torch.inference_mode()
def states(text_encoder: CLIPTextModel) -> Tensor:
    """The states of fixed tokens, as float32."""
    config = text_encoder.config
    ids = torch.arange(config.max_position_embeddings) % config.vocab_size
    return encoders.text_states(text_encoder, ids[None]).float()


def card(source: Source, dtype: str, output: Path, written: Written) -> str:
    """Markdown: what the file was made with, and who reads it how."""
    lines = [f"# {source.stage.name}", "", "A latent diffusion model trained with bigdiff, in the original layout.", ""]
    lines += facts(source.run, source.stage, source.checkpoint, source.which, dtype)
    lines += [f"- {one}" for one in written.untold]
    lines += [""] if written.untold else []
    lines += [
        "```python",
        "from diffusers import StableDiffusionPipeline",
        "# config: a folder that launch/export.py --layout diffusers wrote of this run; without, SD 1.5's is taken",
        f'pipeline = StableDiffusionPipeline.from_single_file("{output.name}", config=folder)',
        "```",
        "",
    ]
    return "\n".join(lines)


def _describe(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """The configurations of a pipeline folder, without weights, which diffusers takes beside a single file."""
    pipeline.save_config(folder)
    pipeline.unet.save_config(folder / "unet")
    pipeline.vae.save_config(folder / "vae")
    pipeline.scheduler.save_config(folder / "scheduler")
    pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as stored:
            return _OURS in (stored.metadata() or {})
    except (SafetensorError, OSError):
        return False
