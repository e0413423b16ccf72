"""QuickGELU, x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, section 2), in one pass over memory forward and one backward.

Nothing but x is kept. Backward computes the sigmoid s again: the slope is s (1 + 1.702 x (1 - s)).
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE: Final = 1024  # elements of a program
_WARPS: Final = 4


@triton.jit
def _place(count, WIDE: tl.constexpr):
    """Offsets of this program's elements, and which of them exist."""
    place = tl.program_id(0).to(tl.int64) * WIDE + tl.arange(0, WIDE)
    return place, place < count


@triton.jit
def _gate(x):
    """sigmoid(1.702 x); 0 where the exponential overflows."""
    return 1.0 / (1.0 + tl.exp(-1.702 * x))


@triton.jit(do_not_specialize=["count"])
def _forward(given, out, count, WIDE: tl.constexpr):
    place, inside = _place(count, WIDE)
    x = tl.load(given + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (x * _gate(x)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _backward(given, gradient, out, count, WIDE: tl.constexpr):
    place, inside = _place(count, WIDE)
    x = tl.load(given + place, mask=inside, other=0.0).to(tl.float32)
    behind = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    gate = _gate(x)
    slope = gate * (1.0 + 1.702 * x * (1.0 - gate))
    tl.store(out + place, (behind * slope).to(out.dtype.element_ty), mask=inside)


def forward(given: Tensor) -> Tensor:
    """QuickGELU of each element, any shape, contiguous."""
    assert given.is_contiguous(), "one run of memory"
    out = torch.empty_like(given)
    _forward[_grid(given)](given, out, given.numel(), WIDE=WIDE, num_warps=_WARPS)
    return out


def backward(gradient: Tensor, given: Tensor) -> Tensor:
    """The gradient of the input, of that of the output; both contiguous, of one shape."""
    assert given.is_contiguous() and gradient.is_contiguous(), "one run of memory"
    out = torch.empty_like(given)
    _backward[_grid(given)](given, gradient, out, given.numel(), WIDE=WIDE, num_warps=_WARPS)
    return out


def _grid(given: Tensor) -> tuple[int]:
    return (triton.cdiv(given.numel(), WIDE),)
