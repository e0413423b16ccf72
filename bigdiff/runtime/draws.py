"""Philox words and normal numbers on a GPU, one kernel each: torch's integer operations take about a hundred.

The words are those of bigdiff.runtime.seeding, bit for bit; the normal numbers are its own to rounding, as logarithm
and cosine are the device's. Arguments of kernels have no types: Triton looks them up, and takes its own alone.
"""

import math
from typing import Any, Final

import torch
import triton
import triton.language as tl

Key = tuple[int, int]  # low and high words of the seed
_BLOCK: Final = 256  # counters of a program

# Triton turns arguments that are 1 or divide by 16 into other kernels; a position's rows come and go with the batch
_PLAIN: Final = ["low", "high", "number", "blocks"]


@triton.jit
def _philox(block, position, low, high, number):
    """Four words for each counter: (block, position's halves, number), under the key."""
    zero = tl.zeros_like(block).to(tl.uint32)
    return tl.philox_impl(
        block.to(tl.uint32),
        zero + (position & 0xFFFFFFFF).to(tl.uint32),
        zero + (position >> 32).to(tl.uint32),
        zero + tl.to_tensor(number).to(tl.uint32),
        zero + tl.to_tensor(low).to(tl.uint32),
        zero + tl.to_tensor(high).to(tl.uint32),
    )


@triton.jit(do_not_specialize=_PLAIN)
def words_kernel(out, positions, low, high, number, blocks, BLOCK: tl.constexpr):
    """`out` int64 [B, 4 blocks], a row for each of `positions`."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, second, third, fourth = _philox(block, tl.load(positions + row), low, high, number)
    place, inside = out + row * blocks * 4 + block * 4, block < blocks
    tl.store(place, first.to(tl.int64), mask=inside)
    tl.store(place + 1, second.to(tl.int64), mask=inside)
    tl.store(place + 2, third.to(tl.int64), mask=inside)
    tl.store(place + 3, fourth.to(tl.int64), mask=inside)


@triton.jit
def _pair(out, first, second, apart, inside):
    """Box & Muller (1958): two normal numbers of two words, stored `apart` elements from each other."""
    radius = tl.sqrt(-2.0 * tl.log((first.to(tl.float32) + 0.5) * 2.3283064365386963e-10))  # 2^-32
    angle = second.to(tl.float32) * 1.4629180792671596e-09  # 2 pi 2^-32
    tl.store(out, radius * tl.cos(angle), mask=inside)
    tl.store(out + apart, radius * tl.sin(angle), mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def normal_kernel(out, positions, low, high, number, blocks, BLOCK: tl.constexpr):
    """`out` fp32 [B, 8 blocks]: radii of the first `blocks` counters' words, angles of as many behind them."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions + row)
    a, b, c, d = _philox(block, position, low, high, number)
    e, f, g, h = _philox(block + blocks, position, low, high, number)
    place, apart, inside = out + row * blocks * 8 + block * 4, blocks * 4, block < blocks
    _pair(place, a, e, apart, inside)
    _pair(place + 1, b, f, apart, inside)
    _pair(place + 2, c, g, apart, inside)
    _pair(place + 3, d, h, apart, inside)


def words(key: Key, number: int, positions: torch.Tensor, blocks: int) -> torch.Tensor:
    """As seeding.by_torch: uint32 words as int64 [B, 4 blocks], of int64 positions [B]."""
    out = torch.empty(len(positions), 4 * blocks, dtype=torch.int64, device=positions.device)
    _run(words_kernel, out, key, number, positions, blocks)
    return out


def normal(key: Key, number: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Standard normal fp32 [B, count], of int64 positions [B]; `count` is a multiple of 8."""
    assert count % 8 == 0, "halves of whole counters"
    out = torch.empty(len(positions), count, dtype=torch.float32, device=positions.device)
    _run(normal_kernel, out, key, number, positions, count // 8)
    return out


def _run(kernel: Any, out: torch.Tensor, key: Key, number: int, positions: torch.Tensor, blocks: int) -> None:
    if out.numel():
        grid = (len(positions), math.ceil(blocks / _BLOCK))
        kernel[grid](out, positions.contiguous(), *key, number, blocks, BLOCK=_BLOCK)
