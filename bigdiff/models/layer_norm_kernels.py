"""LayerNorm (Ba et al. 2016) as kernels: one pass over memory forward, one backward with the gradients of weight, bias.

x is [R, C] in the network's type; mean and 1 / deviation of its rows are fp32 [R]. A program has whole rows in its
registers, so that squared deviations are taken from the mean itself. Gradients of weight and bias are summed in fp32
over a program's rows first, and then over programs.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 4096  # elements that a program has at once
PROGRAMS: Final = 1024  # of the backward pass at most, of which each leaves sums of C channels
LEAST: Final = 4  # tiles of each of these, if there are as many
_WARPS: Final = 8
_PLAIN: Final = ["rows", "tiles"]  # another number of these is no other kernel


@triton.jit
def _tile(start, rows, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Rows from `start` on, their elements in [R, C], which of them exist, and which rows."""
    row, column = start + tl.arange(0, ROWS), tl.arange(0, WIDE)
    real = row < rows
    inside = real[:, None] & (column < channels)[None, :]
    return row, row.to(tl.int64)[:, None] * channels + column[None, :], inside, real


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x, weight, bias, out, means, inverses, rows, channels, eps, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row, place, inside, real = _tile(tl.program_id(0) * ROWS, rows, channels, ROWS, WIDE)
    column = tl.arange(0, WIDE)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / channels
    apart = tl.where(inside, value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / channels + eps)
    factor = tl.load(weight + column, mask=column < channels, other=0.0).to(tl.float32)
    constant = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)
    found = apart * inverse[:, None] * factor[None, :] + constant[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
    tl.store(means + row, mean, mask=real)
    tl.store(inverses + row, inverse, mask=real)


@triton.jit(do_not_specialize=_PLAIN)
def _backward(
    x, gradient, weight, means, inverses, out, of_weight, of_bias, rows, channels, tiles,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and this program's part of those of weight and bias: [programs, C]."""
    column = tl.arange(0, WIDE)
    factor = tl.load(weight + column, mask=column < channels, other=0.0).to(tl.float32)
    normal_sum = tl.zeros([ROWS, WIDE], tl.float32)
    plain_sum = tl.zeros([ROWS, WIDE], tl.float32)
    first = tl.program_id(0) * tiles
    for number in range(0, tiles):
        row, place, inside, real = _tile((first + number) * ROWS, rows, channels, ROWS, WIDE)
        mean, inverse = tl.load(means + row, mask=real, other=0.0), tl.load(inverses + row, mask=real, other=0.0)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        behind = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        normal = tl.where(inside, (value - mean[:, None]) * inverse[:, None], 0.0)
        normal_sum += behind * normal
        plain_sum += behind
        before = behind * factor[None, :]
        level, along = tl.sum(before, axis=1) / channels, tl.sum(before * normal, axis=1) / channels
        found = inverse[:, None] * (before - level[:, None] - along[:, None] * normal)
        tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
    here = tl.program_id(0).to(tl.int64) * channels + column
    tl.store(of_weight + here, tl.sum(normal_sum, axis=0), mask=column < channels)
    tl.store(of_bias + here, tl.sum(plain_sum, axis=0), mask=column < channels)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output as x [..., C], contiguous; mean and 1 / deviation of each row, fp32 [R]."""
    rows, channels, tile = _sizes(x)
    out, (means, inverses) = torch.empty_like(x), (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    given = (x, weight, bias, out, means, inverses)
    _forward[(triton.cdiv(rows, tile["ROWS"]),)](*given, rows, channels, eps, **tile, num_warps=_WARPS)
    return out, means, inverses


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, means: Tensor, inverses: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, as it is, and of weight and bias, fp32 [C]; all contiguous."""
    rows, channels, tile = _sizes(x)
    tiles = max(LEAST, triton.cdiv(rows, tile["ROWS"] * PROGRAMS))
    programs = triton.cdiv(rows, tile["ROWS"] * tiles)
    out, (of_weight, of_bias) = (
        torch.empty_like(x),
        (x.new_empty(programs, channels, dtype=torch.float32) for _ in range(2)),
    )
    given = (x, gradient, weight, means, inverses, out, of_weight, of_bias)
    _backward[(programs,)](*given, rows, channels, tiles, **tile, num_warps=_WARPS)
    return out, of_weight.sum(0), of_bias.sum(0)


def _sizes(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Rows, channels, and rows and channels of a tile, which Triton wants as powers of two."""
    assert x.is_contiguous(), "[R, C] in memory"
    wide = triton.next_power_of_2(x.shape[-1])
    return x.numel() // x.shape[-1], x.shape[-1], {"ROWS": max(1, TILE // wide), "WIDE": wide}
