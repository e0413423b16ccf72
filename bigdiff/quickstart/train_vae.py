"""Makes the quickstart's autoencoder: `python -m bigdiff.quickstart.train_vae --out DIR`.

Stable Diffusion's own `AutoencoderKL` (a factor of 8, four levels), so narrow that one CPU core encodes several hundred
pictures a second. The encoder is written in closed form (bigdiff.quickstart.linear_encoder), the decoder is trained.
The result is shipped in `bigdiff/quickstart/vae`; this script is how it came about and how to make it again. It sees
training scenes only: the held-out combinations are new to the autoencoder too.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from bigdiff.models.encoders import in_range
from bigdiff.quickstart import linear_encoder, scenes

# The two sizes of the quickstart's stages, with the share of the loss each gets.
SIZES: Final[dict[int, float]] = {64: 0.6, 32: 0.4}
_STORED_SIDE: Final = (
    96  # what the embedded dataset serves; the training pictures are resized from it, as the packer does
)
_FITTED: Final = 1000  # pictures of each size that the encoder's principal components are computed from


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the resulting weights."""

    seed: int = 0
    scenes: int = 6000
    steps: int = 1200
    batch: int = 16
    learning_rate: float = 4e-3
    warmup: int = 50
    whitening: float = 0.5  # half way between drowned edges and edges as loud as colours
    threads: int = 2


def build() -> AutoencoderKL:
    """A fresh autoencoder. One norm group: with few channels each, groups would erase absolute colour."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )


def pictures(count: int, seed: int, size: int) -> Tensor:
    """The first `count` training scenes as uint8 pictures, N x 3 x size x size."""
    stack = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        drawn = scenes.render(scenes.scene(seed, index), _STORED_SIDE)
        stack[index] = np.asarray(drawn.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(stack).permute(0, 3, 1, 2)


def normalised(batch: Tensor) -> Tensor:
    """uint8 pixels as floats in [-1, 1]."""
    return in_range(batch).contiguous(memory_format=torch.channels_last)


def train(plan: Plan) -> AutoencoderKL:
    """Write the encoder, then train the decoder on both sizes in every step, so that one VAE serves both stages."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    vae = build().to(memory_format=torch.channels_last)
    data = {size: pictures(plan.scenes, plan.seed, size) for size in SIZES}
    linear_encoder.write(vae, [normalised(batch[:_FITTED]) for batch in data.values()], plan.whitening)
    for name, parameter in vae.decoder.named_parameters():
        if ".conv2." in name:
            torch.nn.init.zeros_(parameter)  # residual blocks begin as identities: the first steps learn the colours
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    bar = tqdm(range(plan.steps), desc="train the decoder", mininterval=5)
    for step in bar:
        optimizer.param_groups[0]["lr"] = plan.learning_rate * _warmed_cosine(step, plan)
        rows = torch.from_numpy(np.random.default_rng((plan.seed, step)).integers(plan.scenes, size=plan.batch))
        losses = [share * _loss(vae, normalised(data[size][rows])) for size, share in SIZES.items()]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return vae.eval()


def psnr(vae: AutoencoderKL, batch: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of the reconstruction of uint8 pictures, the peak being 255."""
    with torch.inference_mode():
        wanted = normalised(batch)
        drawn = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
    return 10 * math.log10(4 / float(functional.mse_loss(drawn, wanted)))


def main() -> None:
    """Make the autoencoder, write it in half precision (1.3 MB) and report its reconstruction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the weights")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="of the decoder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--threads", type=int, default=Plan().threads)
    arguments = parser.parse_args()
    plan = Plan(seed=arguments.seed, steps=arguments.steps, threads=arguments.threads)
    began = time.monotonic()
    # What is shipped is what is measured: the half-precision weights, computed with in single precision.
    train(plan).half().save_pretrained(arguments.out)
    shipped = AutoencoderKL.from_pretrained(arguments.out, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    for size in SIZES:
        sys.stdout.write(f"{size} px: {psnr(shipped, pictures(256, plan.seed + 1, size)):.2f} dB on unseen scenes\n")
    sys.stdout.write(f"scaling factor {shipped.config['scaling_factor']:.4f}; {time.monotonic() - began:.0f} s\n")


def _warmed_cosine(step: int, plan: Plan) -> float:
    warm = min(1.0, (step + 1) / plan.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _loss(vae: AutoencoderKL, wanted: Tensor) -> Tensor:
    """Squares for colour, absolute differences for sharpness, and the same of the gradients for corners."""
    with torch.no_grad():
        latents = vae.encode(wanted).latent_dist.sample()
    drawn = vae.decode(latents).sample
    edges = functional.l1_loss(drawn.diff(dim=-1), wanted.diff(dim=-1)) + functional.l1_loss(
        drawn.diff(dim=-2), wanted.diff(dim=-2)
    )
    return 3 * functional.mse_loss(drawn, wanted) + functional.l1_loss(drawn, wanted) + edges


if __name__ == "__main__":
    main()
