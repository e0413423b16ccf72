"""An AutoencoderKL encoder in closed form: principal components of 8 x 8 patches, written into its convolutions.

Trained end to end, so narrow a network needs a quarter of an hour to reach 22 dB: GroupNorm keeps it from absolute
colour. The best linear code of the same size gives 28 dB and needs no training. It fits into the architecture exactly:
residual blocks whose last convolution is zero are identities, the strided convolutions merge 2 x 2 patches (PCA level
by level), and the final GroupNorm and SiLU are passed unharmed by pairs (x, -x) beside large constants, because
silu(x) - silu(-x) = x and the constants fix the norm's mean and, nearly, its variance.
"""

from collections.abc import Sequence
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

_CONSTANT: Final = 16.0  # against signals of unit variance: the norm's factor then varies by less than one percent
# Of the scaled latents. At 1, as SD has it, sixteen latents show colour and place through nearly all of the schedule's
# noise, and the text is only of use above t = 800: halving the signal makes the text count, and be learnt, earlier.
SCALED_DEVIATION: Final = 0.5
LOG_VARIANCE: Final = -7.8  # of the posterior, everywhere: a standard deviation of 0.02


def merge(pictures: Tensor) -> Tensor:
    """2 x 2 pixels into channels: [B, C, h, w] -> [B, 4C, h/2, w/2], channel-major."""
    count, channels, height, width = pictures.shape
    blocks = pictures.reshape(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(count, 4 * channels, height // 2, width // 2)


def principal(batches: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], the `count` first principal directions [count, C] and their standard deviations [count]."""
    flat = torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], dim=1).double()
    mean = flat.mean(dim=1)
    centred = flat - mean[:, None]
    values, vectors = torch.linalg.eigh(centred @ centred.T / flat.shape[1])
    directions = vectors.flip(1)[:, :count].T
    # an eigenvector's sign is arbitrary and differs between machines: make the largest entry positive
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return mean.float(), (directions * largest.sign()).float(), values.flip(0)[:count].clamp_min(1e-12).sqrt().float()


@torch.no_grad()
def write(vae: AutoencoderKL, pictures: Sequence[Tensor], whitening: float) -> None:
    """Set the weights of `vae`'s encoder from sample `pictures` (each [B, 3, H, W] in [-1, 1]).

    Component k of the latent mean gets the standard deviation s_k ** (1 - whitening): 0 leaves the natural scale, in
    which edges drown beside colours, 1 gives all components the same. The widths must be those of `train_vae.build`:
    three halvings, at least 4 x as many channels at the end as latent channels.
    """
    encoder = vae.encoder
    for block in [*(block.resnets[0] for block in encoder.down_blocks), *encoder.mid_block.resnets]:
        for parameter in (block.conv1.weight, block.conv1.bias, block.conv2.weight, block.conv2.bias):
            parameter.zero_()
        if block.conv_shortcut is not None:
            _embed(block.conv_shortcut)
    _embed(encoder.conv_in)
    signals = list(pictures)
    for block in encoder.down_blocks[:-1]:
        convolution = block.downsamplers[0].conv
        merged = [merge(signal) for signal in signals]
        mean, directions, _ = principal(merged, convolution.out_channels)
        signals = [torch.einsum("kc,bchw->bkhw", directions, each - mean[:, None, None]) for each in merged]
        patches = directions.reshape(len(directions), -1, 2, 2)
        convolution.weight.zero_()
        convolution.weight[: len(directions), : patches.shape[1], :2, :2] = patches
        convolution.bias.zero_()
        convolution.bias[: len(directions)] = -directions @ mean
    _finish(vae, signals, whitening)


def _finish(vae: AutoencoderKL, signals: Sequence[Tensor], whitening: float) -> None:
    """The last level: latents as pairs beside constants, through norm and SiLU, to mean and log-variance."""
    encoder, latents = vae.encoder, vae.config["latent_channels"]
    mean, directions, deviations = principal(signals, latents)
    shortcut = encoder.down_blocks[-1].resnets[0].conv_shortcut
    unit = directions / deviations[:, None]
    constants = (shortcut.out_channels - 2 * latents) // 2
    shortcut.weight.zero_()
    shortcut.weight[:latents, : unit.shape[1], 0, 0] = unit
    shortcut.weight[latents : 2 * latents, : unit.shape[1], 0, 0] = -unit
    shortcut.bias.zero_()
    shortcut.bias[:latents] = -unit @ mean
    shortcut.bias[latents : 2 * latents] = unit @ mean
    shortcut.bias[2 * latents : 2 * latents + constants] = _CONSTANT
    shortcut.bias[2 * latents + constants : 2 * latents + 2 * constants] = -_CONSTANT
    norm = ((2 * latents + 2 * constants * _CONSTANT**2) / shortcut.out_channels) ** 0.5
    scale = norm * deviations ** (1 - whitening)
    out = encoder.conv_out
    out.weight.zero_()
    out.bias.zero_()
    for channel in range(latents):
        out.weight[channel, channel, 1, 1] = scale[channel]
        out.weight[channel, latents + channel, 1, 1] = -scale[channel]
    out.bias[latents:] = LOG_VARIANCE
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        _embed(convolution)
    spread = (deviations ** (2 * (1 - whitening))).mean().sqrt()
    vae.register_to_config(scaling_factor=round(float(SCALED_DEVIATION / spread), 6))


def _embed(convolution: nn.Conv2d) -> None:
    """Pass the input channels on unchanged; further outputs are zero."""
    convolution.weight.zero_()
    if convolution.bias is not None:
        convolution.bias.zero_()
    middle = convolution.kernel_size[0] // 2
    for channel in range(min(convolution.in_channels, convolution.out_channels)):
        convolution.weight[channel, channel, middle, middle] = 1.0
