"""GEGLU (Shazeer 2020) as kernels, in one pass over memory forward and one backward.

The projection's output is [R, 2 C], R rows of C values and then of their C gates: value x gelu(gate), with the exact
gelu. Backward computes gelu again from the same tensor, and writes both halves of its gradient where they belong.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS: Final = 8  # of a tile
WIDE: Final = 256  # channels of a tile: SD 1.x has 1,280, 2,560 and 5,120
_WARPS: Final = 4


@triton.jit
def _tile(rows, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of this program's elements in [R, C] and of its values in [R, 2 C], and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    start = (row * channels)[:, None]
    return start + column[None, :], 2 * start + column[None, :], inside


@triton.jit
def _below(gate):
    """The standard normal distribution's share below `gate`."""
    return 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # 1 / sqrt 2


@triton.jit(do_not_specialize=["rows"])
def _forward(given, out, rows, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    place, twice, inside = _tile(rows, channels, ROWS, WIDE)
    value = tl.load(given + twice, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(given + twice + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (value * gate * _below(gate)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _backward(given, gradient, out, rows, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    place, twice, inside = _tile(rows, channels, ROWS, WIDE)
    value = tl.load(given + twice, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(given + twice + channels, mask=inside, other=0.0).to(tl.float32)
    behind = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    share = _below(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)  # 1 / sqrt (2 pi)
    of_value, of_gate = behind * gate * share, behind * value * (share + gate * density)
    tl.store(out + twice, of_value.to(out.dtype.element_ty), mask=inside)
    tl.store(out + twice + channels, of_gate.to(out.dtype.element_ty), mask=inside)


def forward(given: Tensor) -> Tensor:
    """Values [..., C] of the projection's output [..., 2 C], contiguous."""
    rows, channels = _sizes(given)
    out = given.new_empty(*given.shape[:-1], channels)
    _forward[_grid(rows, channels)](given, out, rows, channels, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    return out


def backward(gradient: Tensor, given: Tensor) -> Tensor:
    """The gradient of the projection's output [..., 2 C], of that of the values [..., C]; both contiguous."""
    rows, channels = _sizes(given)
    out = torch.empty_like(given)
    _backward[_grid(rows, channels)](given, gradient, out, rows, channels, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    return out


def _sizes(given: Tensor) -> tuple[int, int]:
    assert given.is_contiguous(), "[R, 2 C] in memory"
    channels = given.shape[-1] // 2
    return given.numel() // (2 * channels), channels


def _grid(rows: int, channels: int) -> tuple[int, int]:
    return triton.cdiv(rows, ROWS), triton.cdiv(channels, WIDE)
