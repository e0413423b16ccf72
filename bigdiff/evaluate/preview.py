"""Pictures of a stage's fixed prompts while it trains, from given weights: DDIM with classifier-free guidance."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from bigdiff.config.schema import Preview, Stage
from bigdiff.evaluate.grid import Pictures, tiled
from bigdiff.export.diffusers import scheduler
from bigdiff.models.components import build_unet, token_ids
from bigdiff.models.encoders import decode, text_states
from bigdiff.runtime.seeding import normal


class Previewer:
    """Draws the stage's prompts from the same noise every time; costs no memory beyond the weights it is given."""

    def __init__(self, stage: Stage, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.stage = stage
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokens = token_ids(tokenizer, [*stage.preview.prompts, ""])
        with torch.device("meta"):  # the network's shape; its weights come with each call
            self.unet = build_unet(stage.model.unet, stage.latent_size).eval()

    def draw(self, weights: dict[str, Tensor]) -> Pictures:
        """A uint8 [H, W, 3] grid from weights named "unet.*" and, where it is trained, "text_encoder.*"."""
        unet = _part(weights, "unet.")
        device = next(iter(unet.values())).device
        with torch.inference_mode():
            states = self.states(_part(weights, "text_encoder."), device).float()
            latents = self.denoise(unet, states[:-1], states[-1:], device)
            pixels = decode(self.vae.to(device), latents)
        pictures = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return tiled(np.ascontiguousarray(pictures))

    def states(self, weights: dict[str, Tensor], device: torch.device) -> Tensor:
        """Text states [N + 1, L, D] of the prompts and, last, of the empty caption."""
        tokens = self.tokens.to(device)
        if not weights:
            return text_states(self.text_encoder, tokens)
        states: Tensor = functional_call(self.text_encoder, weights, (tokens,)).last_hidden_state
        return states

    def denoise(self, weights: dict[str, Tensor], states: Tensor, empty: Tensor, device: torch.device) -> Tensor:
        """Scaled latents [N, C, h, w] by DDIM from seeded noise."""
        preview: Preview = self.stage.preview
        steps, count = scheduler(self.stage.diffusion), len(states)
        steps.set_timesteps(preview.steps)
        side, channels = self.stage.latent_size, self.stage.model.unet.latent_channels
        positions = torch.arange(count, device=device)
        latents = normal(self.stage.seed, "preview", positions, (channels, side, side))
        both = torch.cat((empty.expand_as(states), states))
        for timestep in steps.timesteps.tolist():
            inputs = (torch.cat((latents, latents)), timestep, both)
            without, given = functional_call(self.unet, weights, inputs).sample.chunk(2)
            prediction = without + preview.guidance * (given - without)
            latents = steps.step(prediction, timestep, latents).prev_sample
        return latents


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
