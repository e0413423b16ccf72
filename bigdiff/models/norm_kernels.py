"""GroupNorm and SiLU of channels_last activations as kernels: forward in three passes over memory, backward in five.

x is [N, P, C], P pixels of C channels each, in the network's type; all that stands between the kernels is fp32 [N, C]
or [N, G]. A shift [N, C] is added to x first, as a residual block adds its time embedding. Sums go by tiles: means and
squared deviations of a tile are exact, and are put together as Chan et al. 1979 do.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS: Final = 128  # pixels of a tile
WIDE: Final = 64  # channels of a tile
_WARPS: Final = 8
# another number of these is no other kernel; of channels it is, as those that divide by 16 are read 16 bytes at a time
_PLAIN: Final = ["pixels", "splits", "each"]


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of this program's elements in x, and which of them exist; its channels in [N, C]."""
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    inside = (row < pixels)[:, None] & (column < channels)[None, :]
    return (sample * pixels + row)[:, None] * channels + column[None, :], inside, sample * channels + column


@triton.jit(do_not_specialize=_PLAIN)
def _statistics(x, means, squares, pixels, channels, splits, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Mean and sum of squared deviations of each tile's channels: [N, splits, C]."""
    place, inside, _ = _tile(pixels, channels, ROWS, WIDE)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(ROWS, pixels - tl.program_id(1) * ROWS)
    mean = tl.sum(value, axis=0) / count
    apart = tl.where(inside, value - mean[None, :], 0.0)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    out = (tl.program_id(0).to(tl.int64) * splits + tl.program_id(1)) * channels + column
    tl.store(means + out, mean, mask=column < channels)
    tl.store(squares + out, tl.sum(apart * apart, axis=0), mask=column < channels)


@triton.jit
def _tiles_of_group(channels, splits, each, SPLITS: tl.constexpr, EACH: tl.constexpr):
    """Of this program's group: channels, which exist, and their [N, C]; tiles in [N, splits, C], which exist; pair."""
    sample, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within, split = tl.arange(0, EACH), tl.arange(0, SPLITS)
    real, column = within < each, number * each + within
    place = (sample * splits + split)[:, None] * channels + column[None, :]
    both = (split < splits)[:, None] & real[None, :]
    return column, real, sample * channels + column, place, both, (sample * tl.num_programs(1) + number) * 2


@triton.jit
def _added(shift, here, real, HAS_SHIFT: tl.constexpr, EACH: tl.constexpr):
    """The shift of a group's channels."""
    return tl.load(shift + here, mask=real, other=0.0).to(tl.float32) if HAS_SHIFT else tl.zeros([EACH], tl.float32)


@triton.jit(do_not_specialize=_PLAIN)
def _merge(
    means, squares, shift, weight, bias, own, group, scale, offset, pixels, channels, splits, each, eps,
    HAS_SHIFT: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """A group: its tiles' sums to the factors [N, C] of `_apply`; `group` [N, G, 2] has its mean and 1 / deviation."""
    column, real, here, place, both, pair = _tiles_of_group(channels, splits, each, SPLITS, EACH)
    split = tl.arange(0, SPLITS)
    mean = tl.load(means + place, mask=both, other=0.0)
    count = tl.where(split < splits, tl.minimum(ROWS, pixels - split * ROWS), 0).to(tl.float32)
    alone = tl.sum(mean * count[:, None], axis=0) / pixels
    apart = tl.where(both, mean - alone[None, :], 0.0)
    squared = tl.sum(tl.load(squares + place, mask=both, other=0.0) + apart * apart * count[:, None], axis=0)
    added = _added(shift, here, real, HAS_SHIFT, EACH)
    middle = tl.sum(tl.where(real, alone + added, 0.0), axis=0) / each
    away = tl.where(real, alone + added - middle, 0.0)
    variance = (tl.sum(squared, axis=0) + pixels * tl.sum(away * away, axis=0)) / (pixels * each)
    inverse = 1.0 / tl.sqrt(variance + eps)
    factor = tl.load(weight + column, mask=real, other=0.0).to(tl.float32) * inverse
    constant = tl.load(bias + column, mask=real, other=0.0).to(tl.float32) + (added - middle) * factor
    tl.store(own + here, alone, mask=real)
    tl.store(scale + here, factor, mask=real)
    tl.store(offset + here, constant, mask=real)
    tl.store(group + pair, middle)
    tl.store(group + pair + 1, inverse)


@triton.jit(do_not_specialize=_PLAIN)
def _apply(x, scale, offset, out, pixels, channels, ROWS: tl.constexpr, WIDE: tl.constexpr):
    place, inside, here = _tile(pixels, channels, ROWS, WIDE)
    known = tl.program_id(2) * WIDE + tl.arange(0, WIDE) < channels
    factor, constant = tl.load(scale + here, mask=known, other=0.0), tl.load(offset + here, mask=known, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + constant[None, :]
    tl.store(out + place, (value * tl.sigmoid(value)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _through_silu(value, gradient):
    """The gradient in front of SiLU, of that behind it."""
    gate = tl.sigmoid(value)
    return gradient * gate * (1.0 + value * (1.0 - gate))


@triton.jit(do_not_specialize=_PLAIN)
def _sums(
    x, gradient, scale, offset, own, plain, centred, pixels, channels, splits,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of each tile's channels: sums of the gradient in front of SiLU, and of it times x less its channel's mean."""
    place, inside, here = _tile(pixels, channels, ROWS, WIDE)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    known = column < channels
    factor, constant = tl.load(scale + here, mask=known, other=0.0), tl.load(offset + here, mask=known, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    behind = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    before = _through_silu(value * factor[None, :] + constant[None, :], behind)
    mean = tl.load(own + here, mask=known, other=0.0)
    out = (tl.program_id(0).to(tl.int64) * splits + tl.program_id(1)) * channels + column
    tl.store(plain + out, tl.sum(before, axis=0), mask=known)
    tl.store(centred + out, tl.sum(before * (value - mean[None, :]), axis=0), mask=known)


@triton.jit(do_not_specialize=_PLAIN)
def _merge_sums(
    plain, centred, shift, weight, own, group, of_weight, of_bias, of_shift, slope, constant,
    pixels, channels, splits, each,
    HAS_SHIFT: tl.constexpr, SPLITS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """A group: its tiles' sums to what `_backward` takes from the gradient, and each sample's part of the others."""
    column, real, here, place, both, pair = _tiles_of_group(channels, splits, each, SPLITS, EACH)
    first = tl.sum(tl.load(plain + place, mask=both, other=0.0), axis=0)
    second = tl.sum(tl.load(centred + place, mask=both, other=0.0), axis=0)
    middle, inverse = tl.load(group + pair), tl.load(group + pair + 1)
    added = _added(shift, here, real, HAS_SHIFT, EACH)
    alone = tl.load(own + here, mask=real, other=0.0)
    factor = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    normal = inverse * (second + (alone + added - middle) * first)
    size = pixels * each
    mean, along = tl.sum(factor * first, axis=0) / size, tl.sum(factor * normal, axis=0) / size
    steep = inverse * inverse * along
    level = inverse * mean + steep * (added - middle)
    tl.store(of_weight + here, normal, mask=real)
    tl.store(of_bias + here, first, mask=real)
    tl.store(slope + here, steep + tl.zeros([EACH], tl.float32), mask=real)
    tl.store(constant + here, level, mask=real)
    if HAS_SHIFT:
        tl.store(of_shift + here, factor * inverse * first - pixels * (steep * alone + level), mask=real)


@triton.jit(do_not_specialize=_PLAIN)
def _backward(
    x, gradient, scale, offset, slope, constant, out, pixels, channels, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    place, inside, here = _tile(pixels, channels, ROWS, WIDE)
    known = tl.program_id(2) * WIDE + tl.arange(0, WIDE) < channels
    factor, added = tl.load(scale + here, mask=known, other=0.0), tl.load(offset + here, mask=known, other=0.0)
    steep, level = tl.load(slope + here, mask=known, other=0.0), tl.load(constant + here, mask=known, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    behind = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    before = _through_silu(value * factor[None, :] + added[None, :], behind)
    found = factor[None, :] * before - value * steep[None, :] - level[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


Kept = tuple[Tensor, Tensor, Tensor, Tensor]  # own, group, scale, offset


def forward(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Kept]:
    """Output as x, channels_last [N, C, H, W], and what `backward` needs of it."""
    samples, channels, pixels, splits = _sizes(x)
    means, squares = (x.new_empty(samples, splits, channels, dtype=torch.float32) for _ in range(2))
    own, scale, offset = (x.new_empty(samples, channels, dtype=torch.float32) for _ in range(3))
    group = x.new_empty(samples, groups, 2, dtype=torch.float32)
    out, grid = torch.empty_like(x), (samples, splits, triton.cdiv(channels, WIDE))
    _statistics[grid](x, means, squares, pixels, channels, splits, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    given = (means, squares, weight if shift is None else shift, weight, bias, own, group, scale, offset)
    each = channels // groups
    _merge[(samples, groups)](*given, pixels, channels, splits, each, eps, ROWS=ROWS, **_padded(shift, splits, each))
    _apply[grid](x, scale, offset, out, pixels, channels, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    return out, (own, group, scale, offset)


def backward(
    gradient: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, kept: Kept
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, of the shift [N, C], of weight and of bias [C], all but the first fp32."""
    own, group, scale, offset = kept
    samples, channels, pixels, splits = _sizes(x)
    groups = group.shape[1]
    plain, centred = (x.new_empty(samples, splits, channels, dtype=torch.float32) for _ in range(2))
    grid = (samples, splits, triton.cdiv(channels, WIDE))
    numbers = (pixels, channels, splits)
    _sums[grid](x, gradient, scale, offset, own, plain, centred, *numbers, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    of_weight, of_bias, of_shift, slope, constant = (torch.empty_like(own) for _ in range(5))
    given = (plain, centred, weight if shift is None else shift, weight, own, group)
    made = (of_weight, of_bias, of_shift, slope, constant)
    each = channels // groups
    _merge_sums[(samples, groups)](*given, *made, *numbers, each, **_padded(shift, splits, each))
    out = torch.empty_like(x)
    factors = (scale, offset, slope, constant)
    _backward[grid](x, gradient, *factors, out, pixels, channels, ROWS=ROWS, WIDE=WIDE, num_warps=_WARPS)
    return out, None if shift is None else of_shift, of_weight.sum(0), of_bias.sum(0)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Samples, channels, pixels and tiles of pixels."""
    assert x.is_contiguous(memory_format=torch.channels_last), "[N, P, C] in memory"
    pixels = x.shape[2] * x.shape[3]
    return x.shape[0], x.shape[1], pixels, triton.cdiv(pixels, ROWS)


def _padded(shift: Tensor | None, splits: int, each: int) -> dict[str, int | bool]:
    """Sizes that Triton wants as powers of two."""
    powers = {"SPLITS": triton.next_power_of_2(splits), "EACH": triton.next_power_of_2(each)}
    return {"HAS_SHIFT": shift is not None, **powers}
