"""Exponential moving average of flat weight partitions: each rank averages what it owns."""

from collections.abc import Sequence

import torch


def effective_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after `updates` = n earlier updates: the warm-up of the original SD code."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """Shadow copies of the fp32 partitions that the optimizer of this rank steps: 4 bytes x parameters / ranks."""

    def __init__(self, partitions: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.shadow = [partition.detach().clone() for partition in partitions]

    @torch.no_grad()
    def update(self, partitions: Sequence[torch.Tensor], updates: int) -> None:
        """shadow <- d shadow + (1 - d) weights, with d = effective_decay(decay, updates)."""
        weight = 1.0 - effective_decay(self.decay, updates)
        torch._foreach_lerp_(self.shadow, [partition.detach() for partition in partitions], weight)
