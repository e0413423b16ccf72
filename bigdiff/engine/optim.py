"""AdamW over the trained parameters, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from bigdiff.config.schema import Optim


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) of `steps`; no number of processes enters.

    Linear warm-up from lr x 1e-6 (LambdaLinearScheduler of the SD v1 configs), then constant, or cosine or linear
    decay to 0 at the last step from the share `decay_start` of the steps on. `ldm_linear` is that scheduler's decay: to
    lr x 1e-6 in steps of 1 / cycle_steps, which begins with a drop, as its launch scripts asked for 50,000 steps in a
    cycle of 300,000.
    """
    if step < optim.warmup_steps:
        return optim.lr * (1e-6 + (1.0 - 1e-6) * step / optim.warmup_steps)
    begin = max(optim.decay_start * steps, optim.warmup_steps)
    if optim.schedule == "constant" or step < begin:
        return optim.lr
    if optim.schedule == "ldm_linear":
        return optim.lr * (1e-6 + (1.0 - 1e-6) * max(steps - step, 0) / optim.cycle_steps)
    share = min((step - begin) / max(steps - begin, 1), 1.0)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1.0 + math.cos(math.pi * share))
    return optim.lr * (1.0 - share)


class Guarded(torch.optim.AdamW):
    """AdamW that moves nothing while the global gradient norm is not finite, or nobody tells it.

    DeepSpeed computes that norm, already reduced over the ranks, right before it calls this step, so that the guard
    needs no collective of its own and decides alike on all ranks. Steps that DeepSpeed makes while it is set up have no
    norm yet: they would leave Adam's count at 1 and the weights decayed.
    """

    norm: Callable[[], torch.Tensor | float] | None = None
    seen: float = math.nan  # the norm at the last call, for the caller to reset: not finite if there was none

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of the parameters that are in the groups now, or none."""
        if self.norm is None:
            return
        # asked before the update's kernels are queued: reading it after them would wait for them
        self.seen = float(self.norm())
        if math.isfinite(self.seen):
            super().step(closure)


def build(parameters: Iterable[nn.Parameter], optim: Optim) -> Guarded:
    """One group: SD 1.x applies weight decay to every parameter, norms and biases included."""
    return Guarded(
        parameters,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,  # no build needed, and bit-identical to the default one under ZeRO
    )
