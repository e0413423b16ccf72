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

    The device decides: torch's fused kernel is given `found_inf`, as a gradient scaler does, and leaves weights,
    moments and count as they are. To ask for the norm first would be to wait for it, with nothing queued behind.
    """

    norm: Callable[[], torch.Tensor | float] | None = None
    seen: torch.Tensor | None = None  # the norm [] at the last call, for the caller to reset
    found_inf: torch.Tensor  # fp32 []: 1 where this call moves nothing

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of the parameters that are in the groups now, or none."""
        if self.norm is None:
            return
        norm = self.norm()
        self.seen = norm if isinstance(norm, torch.Tensor) else torch.full((), norm)
        self.found_inf = (~torch.isfinite(self.seen)).float()
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
