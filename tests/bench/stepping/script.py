"""A training step as diffusers' examples/text_to_image/train_text_to_image.py makes it, in our own words.

That script with --mixed_precision=bf16 --use_ema, everything else as it comes, but with latents that are there: it
encodes its pictures in every step. Weights and gradients are fp32, the forward pass runs under autocast, the text
encoder is in bf16, AdamW and the average are the libraries' own. Its latents lie on the device and cost no reading.
"""

import copy

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.profiler import record_function
from transformers import CLIPTextModel

from bigdiff.config.schema import Stage
from bigdiff.models import components


class Script:
    """Its networks, optimizer and average on one device; in bf16 or, where the stage is, in fp32."""

    def __init__(self, stage: Stage, text_encoder: CLIPTextModel, device: torch.device, half: bool) -> None:
        torch.manual_seed(stage.seed)
        self.device, self.half = device, half
        with device:
            self.unet = components.build_unet(stage.model.unet, stage.latent_size).train()
        self.text = copy.deepcopy(text_encoder).to(device, torch.bfloat16 if half else torch.float32)
        self.ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)
        self.average = EMAModel(self.unet.parameters(), model_cls=type(self.unet), model_config=self.unet.config)
        size, count = stage.latent_size, stage.batch.micro
        assert stage.model.text is not None
        self.latents = torch.randn(count, stage.model.unet.latent_channels, size, size, device=device)
        self.tokens = torch.randint(1000, (count, stage.model.text.max_length), device=device)

    def step(self) -> float:
        """The loss, as its progress bar shows it."""
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(0, 1000, (len(noise),), device=self.device).long()
        noisy = self.ddpm.add_noise(self.latents, noise, timesteps)
        states = self.text(self.tokens, return_dict=False)[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            predicted = self.unet(noisy, timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.repeat(len(noise)).mean().item()  # what it logs, before the backward pass
        loss.backward()
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
            self.average.step(self.unet.parameters())
        return loss.detach().item()
