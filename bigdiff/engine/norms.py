"""The gradient's norm, and clipping by it, in a handful of operations that never ask the device for a number.

DeepSpeed 0.19.8 takes the norm of each parameter's gradient by itself, after a copy to fp64: two kernels and 18 bytes a
weight each, while a GPU has nothing else to do; and its clipping reads whether the norm is finite. Here the same norm
is taken of all gradients at once, and one that is not finite is left to the guard of bigdiff.engine.optim.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from deepspeed import comm
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def take_over(zero: DeepSpeedZeroOptimizer) -> None:
    """Have ZeRO-1 or 2 take its norm and clip here."""
    zero.get_grad_norm_direct = partial(norm, zero)
    zero.unscale_and_clip_grads = partial(clip, zero)


def norm(zero: DeepSpeedZeroOptimizer, gradients: Iterable[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm fp32 [] over all ranks, of whose gradients these are this one's; as it comes, finite or not.

    What lies behind the parameters' own is padding.
    """
    own = [one for one in gradients if not getattr(one, "_zero_padding", False)]
    total = squared([one for one, _ in zip(own, parameters, strict=False)], zero.device)
    comm.all_reduce(total, group=zero.dp_process_group)
    return total.sqrt()


def clip(zero: DeepSpeedZeroOptimizer, gradients: Iterable[Tensor], total: Tensor) -> None:
    """`scale` by DeepSpeed's `clip_grad`."""
    assert zero.loss_scale == 1, "fp16 is not offered"
    scale(gradients, total, zero.clip_grad)


@torch.no_grad()
def squared(own: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """The square fp32 [] of the L2 norm of these together."""
    if not own:
        return torch.zeros((), device=device)
    # a GPU sums a tensor by blocks, in which fp32 loses nothing that counts; a CPU from end to end
    kind = torch.float64 if own[0].device.type == "cpu" else torch.float32
    return torch.stack(torch._foreach_norm(list(own), 2, dtype=kind)).square().sum().float()


@torch.no_grad()
def scale(gradients: Iterable[Tensor], total: Tensor, most: float) -> None:
    """Scale them down in place where the norm `total` is more than `most`, unless that is 0."""
    if not most:
        return
    factor = 1.0 / torch.clamp((total + 1e-6) / most, min=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
