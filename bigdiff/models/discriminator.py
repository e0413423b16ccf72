"""A discriminator of patches, and the hinge losses of both sides (Isola et al. 2017; Esser et al. 2021, eq. 6)."""

from typing import Final

import torch
from torch import Tensor, nn

_GROUP: Final = 16  # channels of a norm group (Wu & He 2018, section 4.1)


class PatchDiscriminator(nn.Module):
    """pix2pix's PatchGAN: a logit for each of many overlapping patches, 70 pixels a side with three layers.

    `layers` convolutions halve the picture, two more do not. pix2pix and the original autoencoder normalise over the
    batch; here groups of channels of each sample are normalised, so that a logit depends on its own picture alone: not
    on the micro-batch, the accumulation or the number of ranks, and a batch's loss is the mean of its samples'.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**number, 8) for number in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number in range(1, layers + 1):
            wide, stride = widths[number], 2 if number < layers else 1
            blocks += [
                nn.Conv2d(widths[number - 1], wide, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(max(wide // _GROUP, 1), wide),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*blocks)
        self.apply(_start)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> logits [B, 1, h, w]: positive where a patch looks like one of a real picture."""
        logits: Tensor = self.main(pixels)
        return logits


def _start(module: nn.Module) -> None:
    """pix2pix's initial weights."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def hinge(real: Tensor, drawn: Tensor) -> Tensor:
    """The discriminator's loss of each sample, fp32 [B], from logits [B, 1, h, w] of pictures and reconstructions."""
    losses = torch.relu(1.0 - real) + torch.relu(1.0 + drawn)
    return 0.5 * losses.flatten(1).mean(1)


def fooling(drawn: Tensor) -> Tensor:
    """The generator's adversarial loss of each sample, [B]: the lower, the more real its patches look."""
    return -drawn.flatten(1).mean(1)
