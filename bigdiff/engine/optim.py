"""AdamW over the trained parameters, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from bigdiff.config.schema import Optim


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) of `steps`; no number of processes enters.

    Linear warm-up from lr x 1e-6 (LambdaLinearScheduler of the SD v1 configs), then constant, or cosine or linear
    decay to 0 at the last step from the share `decay_start` of the steps on.
    """
    if step < optim.warmup_steps:
        return optim.lr * (1e-6 + (1.0 - 1e-6) * step / optim.warmup_steps)
    begin = max(optim.decay_start * steps, optim.warmup_steps)
    if optim.schedule == "constant" or step <= begin:
        return optim.lr
    share = min((step - begin) / max(steps - begin, 1), 1.0)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1.0 + math.cos(math.pi * share))
    return optim.lr * (1.0 - share)


def build(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.AdamW:
    """One group: SD 1.x applies weight decay to every parameter, norms and biases included."""
    return torch.optim.AdamW(
        parameters,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,  # no build needed, and bit-identical to the default one under ZeRO
    )
