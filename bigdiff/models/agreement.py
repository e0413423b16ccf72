"""Whether another way to compute a network gives the same loss and the same gradient of each parameter.

Rounding alone makes two right ways differ: in bf16 the plain network's own gradients are up to a third wrong for single
small parameters (bigdiff.engine.precision has figures). So both are held against the same network in the next wider
type, sample by sample: the other way may be as far from that as the plain one is, twice, and a little.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.func import functional_call

from bigdiff.models.denoiser import Denoiser

TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative, beside twice the plain network's error
WIDER: Final = {torch.float32: torch.float64, torch.bfloat16: torch.float32}
# Of a gradient that is nothing but rounding (the bias of attention's keys moves no output) the error is relative to
# this share of the usual size
FLOOR: Final = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A micro-batch, as Denoiser.forward takes it, and what it should predict."""

    noisy: torch.Tensor  # fp32 [B, C, h, w]
    timesteps: torch.Tensor  # int64 [B]
    text: torch.Tensor | None  # int64 [B, L] or states [B, L, D]
    target: torch.Tensor  # fp32 [B, C, h, w]


def reversed_rows(sample: Sample) -> Sample:
    """The last one first: another input, with the same loss and the same gradients."""
    text = None if sample.text is None else sample.text.flip(0)
    noisy = torch.empty_like(sample.noisy).copy_(sample.noisy.flip(0))  # laid out in memory as it was
    return Sample(noisy=noisy, timesteps=sample.timesteps.flip(0), text=text, target=sample.target.flip(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What a forward and backward pass gives."""

    loss: torch.Tensor  # scalar
    gradients: dict[str, torch.Tensor]  # of each trained parameter, by name


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the plain network gives for a sample, and what it would without rounding; both on the host."""

    plain: Pass
    exact: Pass
    tolerance: float

    def differs(self, other: Pass) -> str:
        """What is wrong with `other`, for a person; "" when nothing is."""
        loss, ours = (abs(float(one.loss) / float(self.exact.loss) - 1) for one in (other, self.plain))
        if not loss <= self.tolerance + 2 * ours:
            return f"its loss is {loss:.2g} off, relatively, and the plain one {ours:.2g}"
        errors, plain = distances(other, self.exact), distances(self.plain, self.exact)
        # a NaN is not less than anything
        wrong = [name for name, error in errors.items() if not error <= self.tolerance + 2 * plain[name]]
        if not wrong:
            return ""
        worst = max(wrong, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
        return (
            f"of {len(errors)} gradients {len(wrong)} are wrong, with a loss that is right; that of {worst} most, by "
            f"{errors[worst]:.2g}, relatively, and the plain one by {plain[worst]:.2g}"
        )


def known(denoiser: Denoiser, sample: Sample) -> Known:
    """Of the network as it is now; meanwhile it needs weights and gradients once more, in the wider type."""
    return Known(
        plain=_on_host(gradients(denoiser, sample)),
        exact=_on_host(exact(denoiser, sample)),
        tolerance=TOLERANCE[denoiser.unet.dtype],
    )


def gradients(denoiser: Denoiser, sample: Sample) -> Pass:
    """Loss and gradients of the network as it is; no `grad` is touched, and no hook that waits for one is called."""
    loss = squared_error(denoiser(*inputs(denoiser, sample)), sample.target)
    weights = denoiser.trained()
    found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return Pass(loss=loss.detach(), gradients=dict(zip(weights, found, strict=True)))


def exact(denoiser: Denoiser, sample: Sample) -> Pass:
    """The same in the next wider type, from the same rounded weights and text, one sample at a time."""
    kind, count, given = WIDER[denoiser.unet.dtype], len(sample.noisy), inputs(denoiser, sample)
    weights: dict[str, torch.Tensor] = {
        name: nn.Parameter(one.detach().to(kind), requires_grad=one.requires_grad)
        for name, one in denoiser.named_parameters()
        if denoiser.train_text or name.startswith("unet.")
    }
    both, prefixed = _Both(denoiser), {f"denoiser.{name}": one for name, one in weights.items()}
    total = torch.zeros((), device=sample.noisy.device, dtype=kind)
    for row in range(count):
        rows = slice(row, row + 1)
        some = (sample.target[rows], *(one[rows] for one in given))
        total += functional_call(both, prefixed, some) / count
    found = {name: one.grad for name, one in weights.items() if one.requires_grad}
    return Pass(
        loss=total,
        gradients={
            name: torch.zeros_like(weights[name]) if one is None else one / count for name, one in found.items()
        },
    )


class _Both(nn.Module):
    """Forward and backward pass in one call, for blocks that the backward pass computes again with the same weights."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, target: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        loss = squared_error(self.denoiser(*inputs), target)
        torch.autograd.backward(loss)
        return loss.detach()


def distances(found: Pass, exact: Pass) -> dict[str, float]:
    """L2 distance of each gradient from the exact one, relative to that, or to FLOOR of what is usual for its size."""
    norms = {name: float(one.norm()) for name, one in exact.gradients.items()}
    elements = sum(one.numel() for one in exact.gradients.values())
    usual = math.hypot(*norms.values()) / math.sqrt(elements)
    return {
        name: float((found.gradients[name].to(one) - one).norm())
        / max(norms[name], FLOOR * usual * math.sqrt(one.numel()))
        for name, one in exact.gradients.items()
    }


def apart(found: Pass, exact: Pass) -> float:
    """L2 distance of all gradients together from the exact ones, relative to those."""
    both = [(found.gradients[name].to(one) - one, one) for name, one in exact.gradients.items()]
    error, norm = (math.hypot(*(float(pair[which].norm()) for pair in both)) for which in (0, 1))
    return error / norm


def inputs(denoiser: Denoiser, sample: Sample) -> tuple[torch.Tensor, ...]:
    """What the network is called with, rounded as it will be, so that no rounding of the input counts as an error."""
    given = (sample.noisy, sample.timesteps, *(() if sample.text is None else (sample.text,)))
    return tuple(one.to(denoiser.unet.dtype) if one.is_floating_point() else one for one in given)


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean, a scalar in fp32 or wider."""
    kind = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(kind) - target).pow(2).mean()


def _on_host(one: Pass) -> Pass:
    return Pass(loss=one.loss.cpu(), gradients={name: gradient.cpu() for name, gradient in one.gradients.items()})
