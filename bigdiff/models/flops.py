"""Exact floating-point operations per image, counted operator by operator on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigdiff.config.engine_rules import AUTO
from bigdiff.config.schema import Stage
from bigdiff.models.network import Network, autoencoder, network


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Of one image; a multiply-add is two. Of matrix products and convolutions, as torch counts them.

    The attention's own recomputation in a flash kernel's backward pass is none of the model's work and not in it.
    """

    forward: int  # of what learns, or lies between what learns
    backward: int
    recomputed: int  # with gradient checkpointing: what the backward pass computes a second time
    frozen: int  # forward passes of the frozen text encoder, for captions that are not dropped, and autoencoder

    @property
    def model(self) -> int:
        """Of what learns, as published counts of a UNet have it."""
        return self.forward + self.backward

    @property
    def needed(self) -> int:
        """What model FLOPs utilisation (MFU) counts: Chowdhery et al. 2022, appendix B.

        All that a step cannot do without, frozen networks included, and nothing a second time: gradient checkpointing
        lowers the MFU, as it should, because it lowers the speed.
        """
        return self.model + self.frozen

    @property
    def total(self) -> int:
        """What the device computes."""
        return self.needed + self.recomputed


def per_image(stage: Stage) -> Flops:
    """Of a training image of `stage`, by the network that `bigdiff.models.network` makes of it.

    Raises:
        UsageError: as `network`.
    """
    plain = of(network(replace(stage, engine=replace(stage.engine, gradient_checkpointing=False))))
    if stage.engine.gradient_checkpointing in (False, AUTO):  # what that will recompute, its memory decides
        return plain
    return replace(plain, recomputed=of(network(stage)).model - plain.model)


def of(found: Network) -> Flops:
    """Of an image through `found`, 1 to 2 s of work for SD's UNet; what checkpointing recomputes is in `backward`."""
    with counter() as count:
        output = found.denoiser(*found.inputs(1, found.tokens and found.denoiser.train_text))
        forward = count.get_total_flops()
        torch.autograd.backward(output.sum())
    both = count.get_total_flops()
    return Flops(forward=forward, backward=both - forward, recomputed=0, frozen=_frozen(found))


def encoding(stage: Stage) -> int:
    """Of an image of the stage's resolution through its autoencoder's encoder; 0 where that is not known.

    Raises:
        UsageError: as `autoencoder`.
    """
    with torch.device("meta"):
        encoder, _ = autoencoder(stage)
    return _encoded(encoder, stage.resolution) if encoder is not None else 0


def _encoded(encoder: AutoencoderKL, side: int) -> int:
    pixels = torch.zeros(1, int(encoder.config["in_channels"]), side, side, device="meta")
    return counted(lambda: encoder.encode(pixels))


def counted(forward: Callable[[], object]) -> int:
    """Of any forward pass on the meta device, which computes nothing."""
    with torch.no_grad(), counter() as count:
        forward()
    return count.get_total_flops()


def _frozen(found: Network) -> int:
    with torch.no_grad(), counter() as count:
        if found.tokens and not found.denoiser.train_text:
            found.denoiser.states(found.inputs(1, tokens=True)[2])
    encoded = _encoded(found.encoder, found.stage.resolution) if found.encoder is not None else 0
    return round((1 - found.stage.text_dropout) * count.get_total_flops()) + encoded


@contextmanager
def counter() -> Iterator[FlopCounterMode]:
    """Counts the operators that run meanwhile."""
    # plain attention: the meta device has no kernel of its own, and its products are what the counter must see
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        yield count
