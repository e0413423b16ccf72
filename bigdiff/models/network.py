"""The network of a stage as its engine gets it, on the meta device: no memory and no weights."""

import json
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Autoencoder, Stage, on_images
from bigdiff.models.autoencoder import build
from bigdiff.models.components import local_folder
from bigdiff.models.denoiser import Denoiser, build_denoiser

# by the width of their states: CLIP ViT-L/14's text model (SD 1.x) and OpenCLIP ViT-H/14's without its last layer
_TEXT: Final = {
    768: {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    1024: {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What a process of a diffusion stage computes with."""

    stage: Stage
    denoiser: Denoiser  # with the text encoder where its sizes are known
    encoder: AutoencoderKL | None  # of a stage that encodes pictures while it trains
    notes: tuple[str, ...]  # what was taken for what is not there

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each trained parameter, in the order of the flat vector."""
        return tuple(one.numel() for one in self.denoiser.trained().values())

    @property
    def frozen(self) -> int:
        """Elements that each process has beside the trained ones, in the network's own type."""
        modules: list[nn.Module] = [self.denoiser, *([self.encoder.encoder] if self.encoder else [])]
        every = sum(one.numel() for module in modules for one in module.parameters())
        return every - sum(self.sizes)

    @property
    def tokens(self) -> bool:
        """Whether the denoiser makes the text's states itself."""
        return self.denoiser.text_encoder is not None

    def inputs(self, batch: int, tokens: bool, device: str = "meta") -> tuple[torch.Tensor, ...]:
        """Noisy latents [B, C, h, w], timesteps [B] and the text: token ids [B, L] or states [B, L, D]."""
        model, size = self.stage.model, self.stage.latent_size
        noisy = torch.zeros(batch, model.unet.latent_channels, size, size, device=device)
        if self.stage.engine.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        timesteps = torch.zeros(batch, dtype=torch.int64, device=device)
        if model.text is None:
            return noisy, timesteps
        shape = (batch, model.text.max_length)
        if tokens:
            return noisy, timesteps, torch.zeros(shape, dtype=torch.int64, device=device)
        return noisy, timesteps, torch.zeros(*shape, model.unet.cross_attention_dim, device=device)


def network(stage: Stage, device: str = "meta") -> Network:
    """The network of `stage` on `device`, with the weights of its seed anywhere but on "meta".

    Raises:
        UsageError: for a stage that trains an autoencoder, or a network that cannot be built.
    """
    if stage.model.autoencoder is not None:
        raise UsageError(f"stage {stage.name} trains an autoencoder: only diffusion stages can be planned")
    with torch.device(device):
        text, said = _text_encoder(stage)
        encoder, also = autoencoder(stage) if on_images(stage.data) else (None, ())
        denoiser = build_denoiser(stage, text)
    return Network(stage=stage, denoiser=denoiser, encoder=encoder, notes=(*said, *also))


def _text_encoder(stage: Stage) -> tuple[CLIPTextModel | None, tuple[str, ...]]:
    """The text encoder by its config.json, or by the width of its states."""
    if stage.model.text is None:
        return None, ()
    source, width = stage.model.text.encoder, stage.model.unet.cross_attention_dim
    found = _config(source)
    if found:
        return CLIPTextModel(CLIPTextConfig(**found)), ()
    if width not in _TEXT:
        return None, (f"text encoder {source} is not on this machine: its FLOPs, memory and time are left out",)
    sizes = _TEXT[width]
    note = f"text encoder {source} is not on this machine: taken for {sizes['num_hidden_layers']} layers of {width}"
    return CLIPTextModel(CLIPTextConfig(**sizes)), (note,)


def autoencoder(stage: Stage) -> tuple[AutoencoderKL | None, tuple[str, ...]]:
    """The autoencoder of a stage's latents by its config.json, or SD's, and what was taken for what is not there.

    Raises:
        UsageError: for a config.json that cannot be read.
    """
    if stage.model.vae is None:
        return None, ()
    source, kl_f8 = stage.model.vae.source, Autoencoder()
    found = _config(source)
    if found:
        return AutoencoderKL.from_config(found), ()
    if (stage.model.vae.factor, stage.model.unet.latent_channels) != (kl_f8.factor, kl_f8.latent_channels):
        return None, (f"autoencoder {source} is not on this machine: its FLOPs, memory and time are left out",)
    return build(kl_f8, stage.resolution), (f"autoencoder {source} is not on this machine: taken for SD's KL-f8",)


def _config(source: str) -> dict[str, Any]:
    file = local_folder(source) / "config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): write it again or give another folder") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} is no model configuration: give another folder")
    return found
