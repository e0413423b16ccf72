"""Exact floating-point operations per image, counted operator by operator on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigdiff.config.schema import Stage
from bigdiff.plan.network import Network, network


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Of one image; a multiply-add is two. Of matrix products and convolutions, as torch counts them.

    The attention's own recomputation in a flash kernel's backward pass is none of the model's work and not in it.
    """

    forward: int  # of what learns, or lies between what learns
    backward: int
    recomputed: int  # with gradient checkpointing: what the backward pass computes a second time
    frozen: int  # forward passes of the frozen text encoder and autoencoder

    @property
    def model(self) -> int:
        """What model FLOPs utilisation (MFU) counts: Chowdhery et al. 2022, appendix B."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """What the device computes."""
        return self.model + self.recomputed + self.frozen


def per_image(stage: Stage) -> Flops:
    """Of a training image of `stage`, some seconds of work for SD's UNet.

    Raises:
        UsageError: as `network`.
    """
    plain = network(replace(stage, engine=replace(stage.engine, gradient_checkpointing=False)))
    trains = plain.denoiser.train_text
    forward = _counted(lambda: _forward(plain, trains))
    both = _counted(lambda: _both(plain, trains))
    recomputed = 0
    if stage.engine.gradient_checkpointing:
        again = network(stage)
        recomputed = _counted(lambda: _both(again, trains)) - both
    return Flops(forward=forward, backward=both - forward, recomputed=recomputed, frozen=_frozen(plain))


def _forward(found: Network, tokens: bool) -> torch.Tensor:
    return found.denoiser(*found.inputs(1, tokens))  # type: ignore[no-any-return]


def _both(found: Network, tokens: bool) -> None:
    torch.autograd.backward(_forward(found, tokens).sum())


def _frozen(found: Network) -> int:
    counted = 0
    if found.tokens and not found.denoiser.train_text:
        tokens = found.inputs(1, tokens=True)[2]
        counted += _counted(lambda: found.denoiser.states(tokens))
    if found.encoder is not None:
        encoder, side = found.encoder, found.stage.resolution
        picture = torch.zeros(1, int(encoder.config["in_channels"]), side, side, device="meta")
        with torch.no_grad():
            counted += _counted(lambda: encoder.encode(picture))
    return counted


def _counted(work: Callable[[], object]) -> int:
    # plain attention: the meta device has no kernel of its own, and its products are what the counter must see
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
