"""Pictures of a stage while it trains, from given weights by DDIM: of its prompts with guidance, or without text."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from bigdiff.config.schema import Stage
from bigdiff.evaluate.grid import Pictures, tiled
from bigdiff.export.diffusers import preview_scheduler
from bigdiff.models.components import build_unet, token_ids
from bigdiff.models.denoiser import part
from bigdiff.models.encoders import decode, text_states
from bigdiff.runtime.seeding import normal


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What draws beside the weights that are trained; what a stage does not have is None."""

    vae: AutoencoderKL | None = None
    text_encoder: CLIPTextModel | None = None
    tokenizer: CLIPTokenizer | None = None
    frozen: Mapping[str, Tensor] = field(default_factory=dict)  # weights of the UNet that are not trained, "unet.*"


class Previewer:
    """Draws from the same noise every time; costs no memory beyond the weights it is given."""

    def __init__(self, stage: Stage, beside: Beside) -> None:
        self.stage = stage
        self.beside = beside
        self.scales = (stage.preview.guidance, *stage.preview.more_guidance)
        self.tokens = token_ids(beside.tokenizer, [*stage.preview.prompts, ""]) if beside.tokenizer else None
        with torch.device("meta"):  # the network's shape; its weights come with each call
            self.unet = build_unet(stage.model.unet, stage.latent_size).eval()

    def draw(self, weights: dict[str, Tensor]) -> Pictures:
        """A uint8 [H, W, 3] grid from weights named "unet.*" and, where it is trained, "text_encoder.*".

        With several scales of guidance a row for each, a column for each prompt.
        """
        device = next(iter(weights.values())).device
        frozen = {name: one.to(device) for name, one in self.beside.frozen.items()}
        unet = part({**frozen, **weights}, "unet.")
        with torch.inference_mode():
            states = self.states(part(weights, "text_encoder."), device)
            drawn = torch.cat([self.denoise(unet, states, device, scale) for scale in self.scales])
            pixels = drawn.clamp(-1, 1) if self.beside.vae is None else decode(self.beside.vae.to(device), drawn)
        pixels = pixels.expand(-1, 3, -1, -1)  # grey as RGB
        pictures = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        rows = len(self.scales)
        return tiled(np.ascontiguousarray(pictures), len(pictures) // rows if rows > 1 else 0)

    def states(self, weights: dict[str, Tensor], device: torch.device) -> Tensor | None:
        """Text states fp32 [N + 1, L, D] of the prompts and, last, of the empty caption; None without text."""
        text_encoder = self.beside.text_encoder
        if text_encoder is None or self.tokens is None:
            return None
        tokens, text_encoder = self.tokens.to(device), text_encoder.to(device)
        return text_states(text_encoder, tokens, weights).float()

    def denoise(
        self, weights: dict[str, Tensor], states: Tensor | None, device: torch.device, guidance: float
    ) -> Tensor:
        """Scaled latents or pixels [N, C, h, w] by DDIM from seeded noise, the same at each scale of guidance."""
        steps, preview = preview_scheduler(self.stage), self.stage.preview
        steps.set_timesteps(preview.steps)
        count = preview.count if states is None else len(states) - 1
        shape = (self.stage.model.unet.latent_channels, self.stage.latent_size, self.stage.latent_size)
        drawn = normal(self.stage.seed, "preview", torch.arange(count, device=device), shape)
        both = None if states is None else torch.cat((states[-1:].expand_as(states[:-1]), states[:-1]))
        for timestep in steps.timesteps.tolist():
            if both is None:
                prediction = functional_call(self.unet, weights, (drawn, timestep)).sample
            else:
                inputs = (torch.cat((drawn, drawn)), timestep, both)
                without, given = functional_call(self.unet, weights, inputs).sample.chunk(2)
                prediction = without + guidance * (given - without)
            drawn = steps.step(prediction, timestep, drawn).prev_sample
        return drawn
