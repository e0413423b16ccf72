"""UNet, autoencoder, text model and tokenizer, from a configuration or from files in diffusers' layout.

Weights are read from safetensors alone, never from a pickle.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from httpx import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet

M = TypeVar("M", bound=nn.Module)
AnyUNet: TypeAlias = UNet2DConditionModel | UNet2DModel  # with text, and without
_UNREADABLE: Final = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_VAE_FILES: Final = ("config.json", "diffusion_pytorch_model.safetensors")
_TEXT_FILES: Final = ("config.json", "model.safetensors")
_TOKENIZER_FILES: Final = (
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "special_tokens_map.json",
)


def unet_config(unet: UNet, latent_size: int) -> dict[str, object]:
    """Arguments of diffusers' UNet2DConditionModel, or UNet2DModel, for `unet` on latents of `latent_size` a side."""
    values = asdict(unet)
    channels = values.pop("latent_channels")
    if not unet.cross_attention_dim:
        del values["cross_attention_dim"]
    return {"sample_size": latent_size, "in_channels": channels, "out_channels": channels, **values}


def build_unet(unet: UNet, latent_size: int) -> AnyUNet:
    """A UNet with fresh weights in float32; the caller seeds torch's default generator.

    It looks at text unless `unet.cross_attention_dim` is 0.

    Raises:
        UsageError: when diffusers refuses the configuration.
    """
    try:
        kind = UNet2DConditionModel if unet.cross_attention_dim else UNet2DModel
        built: AnyUNet = kind(**unet_config(unet, latent_size))
    except (ValueError, TypeError) as error:
        raise UsageError(f"model.unet cannot be built: {error}") from error
    return built


def load_vae(source: str) -> AutoencoderKL:
    """The frozen autoencoder at `source` in float32 and evaluation mode.

    `source` is a local folder in diffusers' layout or a hub id, optionally with `:subfolder`.

    Raises:
        UsageError: when it is not there or cannot be read.
    """
    folder = fetch(source, "autoencoder", _VAE_FILES)
    try:
        vae = AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except _UNREADABLE as error:
        raise _unreadable(source, folder, "autoencoder", error) from error
    return _frozen(vae)


def load_text_encoder(source: str) -> CLIPTextModel:
    """The CLIP text model at `source` in float32, frozen and in evaluation mode; `source` as for `load_vae`.

    A stage that trains it calls `.train().requires_grad_(True)` itself.

    Raises:
        UsageError: when it is not there or cannot be read.
    """
    folder = fetch(source, "text encoder", _TEXT_FILES)
    transformers_logging.disable_progress_bar()  # a bar for a second's work, once per process
    try:
        model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except _UNREADABLE as error:
        raise _unreadable(source, folder, "text encoder", error) from error
    return _frozen(model)


def load_tokenizer(source: str, max_length: int) -> CLIPTokenizer:
    """The CLIP tokenizer at `source`, which pads and cuts to `max_length` tokens (see `token_ids`).

    Raises:
        UsageError: when it is not there or cannot be read.
    """
    folder = fetch(source, "tokenizer", ("tokenizer_config.json",), _TOKENIZER_FILES)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=max_length, local_files_only=True)
    except _UNREADABLE as error:
        raise _unreadable(source, folder, "tokenizer", error) from error
    if len(tokenizer) < 3:  # what transformers makes, silently, of a folder without a vocabulary
        raise UsageError(f"tokenizer {source}: {folder} has neither vocab.json and merges.txt nor tokenizer.json")
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids int64 [B, L], each row cut and padded to the tokenizer's `model_max_length`."""
    length = tokenizer.model_max_length
    if not captions:
        return torch.empty((0, length), dtype=torch.int64)
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=length)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def weights_sha256(module: nn.Module) -> str:
    """Sha256 of the names, types, shapes and bytes of `module`'s state: the same however the files were laid out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: CLIPTokenizer) -> str:
    """Sha256 of the vocabulary with its ids, and of the ids that begin, end and pad a caption."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    content = json.dumps([sorted(tokenizer.get_vocab().items()), special], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def fetch(source: str, kind: str, required: tuple[str, ...], wanted: tuple[str, ...] = ()) -> Path:
    """The local folder that holds `required` for `source`, taken from the hub (its cache first) when it is a hub id.

    From the hub come only the files in `required` and `wanted`.

    Raises:
        UsageError: naming `source` and the mend.
    """
    local = local_folder(source)
    if local.is_dir():
        absent = [name for name in required if not (local / name).is_file()]
        if absent:
            raise UsageError(f"{kind} {source}: the folder {local} has no {absent[0]}")
        return local
    repository, _, subfolder = source.partition(":")
    if not _HUB_ID.fullmatch(repository) or Path(repository).parts[0] == "runs":
        raise UsageError(f"{kind} {source}: there is no such folder; make it first or give another source")
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in (*required, *wanted)]
    for cached in (True, False):  # the cache first: it spares the network thousands of processes
        folder = _snapshot(source, kind, patterns, cached)
        absent = [name for name in patterns[: len(required)] if folder is None or not (folder / name).is_file()]
        if folder is not None and not absent:
            return folder / subfolder
    raise UsageError(f"{kind} {source}: the hub repository {repository} has no file {absent[0]}")


def local_folder(source: str) -> Path:
    """Where `source`, a folder with `:subfolder` or without, would lie on this machine; a hub id lies nowhere."""
    whole = Path(source).expanduser()
    if whole.is_dir() or ":" not in source:
        return whole
    folder, _, subfolder = source.rpartition(":")
    return Path(folder).expanduser() / subfolder


def _snapshot(source: str, kind: str, patterns: list[str], cached: bool) -> Path | None:
    """The folder of a hub repository's snapshot; None when it was to come from the cache and is not there."""
    repository = source.partition(":")[0]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=cached, etag_timeout=5))
    except (OSError, ValueError, HfHubHTTPError, HTTPError) as error:
        if cached:
            return None
        raise UsageError(
            f"{kind} {source}: there is no such folder, it is not in the hub's cache, and the hub did not give it "
            f"({_first_line(error)}); download it where there is network access and name its folder"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreadable(source: str, folder: Path, kind: str, error: Exception) -> UsageError:
    return UsageError(f"{kind} {source}: {folder} cannot be loaded ({_first_line(error)})")


def _frozen(module: M) -> M:
    return module.requires_grad_(False).eval()
