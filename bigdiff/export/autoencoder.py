"""A run's trained autoencoder as a diffusers `AutoencoderKL` folder, which a later stage names as model.vae.source.

Its scaling factor is measured: 1 / the standard deviation of the latents, all components together, over the first
pictures of the run's data (Rombach et al. 2022, section D.1 and appendix G: there of the diffusion's first batch).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from bigdiff.checkpoint.reader import read_index
from bigdiff.config.errors import RunError, UsageError
from bigdiff.export.diffusers import DTYPES, INDEX, Source, put, replacing_folder
from bigdiff.models.autoencoder import build
from bigdiff.models.encoders import in_range, moments, posterior_sample
from bigdiff.runtime.files import write_bytes
from bigdiff.runtime.seeding import normal

MEASURED: Final = 128  # pictures that the scaling factor is measured on
CONFIG: Final = "config.json"
TOGETHER: Final = 4  # pictures encoded at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large the latents of an autoencoder are."""

    std: float
    pictures: int

    @property
    def factor(self) -> float:
        """What brings them to unit variance."""
        return 1.0 / self.std


def export(source: Source, pictures: Iterable[Tensor], output: Path, dtype: str = "float32") -> Scale:
    """Write the autoencoder of `source` to the folder `output`; `pictures` uint8 [n, 3, H, W] are measured.

    Raises:
        UsageError: when `output` holds something else than an earlier export, or the checkpoint is of another network.
        RunError: when the latents have no spread, or the written folder does not load back to the same reconstruction.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    if output.exists() and any(output.iterdir()) and not _is_autoencoder(output):
        raise UsageError(f"{output} holds something else than an autoencoder: choose another output folder")
    vae = load(source)
    scale = measure(vae, pictures, source.stage.seed)
    vae.register_to_config(scaling_factor=scale.factor)
    vae.to(DTYPES[dtype])
    with replacing_folder(output) as folder:
        vae.save_pretrained(folder, safe_serialization=True)
        write_bytes(folder / "README.md", card(source, scale, dtype).encode())
        verify(vae, folder)
    return scale


def load(source: Source) -> AutoencoderKL:
    """The autoencoder of `source` in float32 on the CPU, without a scaling factor.

    Raises:
        UsageError: when the checkpoint's parameters are not those of the stage's network.
    """
    config = source.stage.model.autoencoder
    assert config is not None, "asked for of an autoencoder stage"
    with torch.device("meta"):
        vae = build(config, source.stage.resolution)
    put(source, "vae.", vae)
    return vae.requires_grad_(False).eval()


@torch.inference_mode()
def measure(vae: AutoencoderKL, pictures: Iterable[Tensor], seed: int) -> Scale:
    """The spread of posterior samples of `pictures`, uint8 [n, 3, H, W] each, on a GPU where there is one.

    Raises:
        RunError: when there is none, or it is not a number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae, seen = vae.to(device), 0
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of the latents, of their squares, and their number
    for batch in tqdm(
        (part for some in pictures for part in torch.split(some, TOGETHER)), desc="measure latents", unit="batch"
    ):
        found = moments(vae, in_range(batch.to(device)))
        shape = (found.shape[1] // 2, *found.shape[2:])
        noise = normal(seed, "posterior", torch.arange(seen, seen + len(batch), device=device), shape)
        latents = posterior_sample(found, noise, 1.0).double()
        sums += torch.stack((latents.sum(), latents.square().sum(), latents.new_tensor(latents.numel())))
        seen += len(batch)
    vae.to("cpu")
    total, squares, count = sums.tolist()
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not variance > 0:
        raise RunError(f"the latents of {seen} pictures have a variance of {variance}: train the autoencoder further")
    return Scale(std=variance**0.5, pictures=seen)


def card(source: Source, scale: Scale, dtype: str) -> str:
    """Markdown: what the autoencoder was made with, in the numbers of its run."""
    stage, index = source.stage, read_index(source.checkpoint)
    config = stage.model.autoencoder
    assert config is not None, "asked for of an autoencoder stage"
    side = stage.resolution // config.factor
    rows = {
        "stage": stage.name,
        "recipe": stage.recipe or "none named",
        "started from": stage.beginning,
        "weights": f"{source.which}, {dtype}",
        "optimizer steps": f"{index.state.step:,}",
        "images seen": f"{index.state.samples_seen:,}",
        "global batch": f"{stage.batch.total:,}",
        "resolution": f"{stage.resolution} px ({config.latent_channels} x {side} x {side} latents)",
        "scaling factor": f"{scale.factor:.6g}: 1 / the latents' standard deviation over {scale.pictures} pictures",
        "reconstruction": f"{config.reconstruction.upper()} + {config.perceptual_weight:g} x LPIPS",
        "KL weight": f"{config.kl_weight:g}",
        "discriminator": f"weight {config.disc_weight:g} from step {config.disc_start:,}"
        if config.disc_weight
        else "none",
        "learning rate": f"{stage.optim.lr:g}, {stage.optim.schedule}, {stage.optim.warmup_steps:,} warm-up steps",
        "seed": str(stage.seed),
        "image set": f"manifest sha256 {index.identity.manifest}",
    }
    lines = [f"# {stage.name}", "", "A KL autoencoder trained with bigdiff, as a diffusers AutoencoderKL.", ""]
    lines += ["| fact | value |", "|---|---|", *(f"| {fact} | {value} |" for fact, value in rows.items()), ""]
    return "\n".join(lines)


def verify(vae: AutoencoderKL, folder: Path) -> None:
    """Load `folder` with stock diffusers; compare every tensor, the configuration and a reconstruction with `vae`.

    Raises:
        RunError: naming the first difference.
    """
    loaded = AutoencoderKL.from_pretrained(
        folder, torch_dtype=vae.dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    wanted, found = vae.state_dict(), loaded.state_dict()
    other = sorted(wanted.keys() ^ found.keys()) or [
        name for name in wanted if not torch.equal(wanted[name], found[name])
    ]
    if other:
        raise RunError(f"{folder}: the autoencoder loads with another {other[0]} than it was written with")
    if loaded.config["scaling_factor"] != vae.config["scaling_factor"]:
        raise RunError(f"{folder}: the autoencoder loads with another scaling factor than it was written with")
    if not torch.equal(*(_reconstruction(one) for one in (vae, loaded.eval()))):
        raise RunError(f"{folder}: the loaded autoencoder reconstructs another picture")


@torch.inference_mode()
def _reconstruction(vae: AutoencoderKL) -> Tensor:
    """Of one level of noise; a side that keeps the check short, whatever the stage's resolution."""
    side = 8 * 2 ** (len(vae.config["block_out_channels"]) - 1)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn: Tensor = vae(pixels.to(vae.dtype)).sample
    return drawn


def _is_autoencoder(folder: Path) -> bool:
    file = folder / CONFIG
    if not file.is_file() or (folder / INDEX).exists():
        return False
    try:
        content: Any = json.loads(file.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("_class_name") == "AutoencoderKL"
