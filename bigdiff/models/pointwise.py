"""Kernels of one input, with a gradient: nothing but the input is kept for the backward pass."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def computed(kernels: ModuleType, given: Tensor) -> Tensor:
    """`kernels.forward(given)`, whose gradient is `kernels.backward(gradient, given)`; both get contiguous tensors."""
    found: Tensor = _Computed.apply(given, kernels)
    return found


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, kernels: ModuleType) -> Tensor:  # noqa: ANN401
        laid = given.contiguous()
        ctx.save_for_backward(laid)
        ctx.kernels = kernels
        out: Tensor = kernels.forward(laid)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (given,) = ctx.saved_tensors
        return ctx.kernels.backward(gradient.contiguous(), given), None
