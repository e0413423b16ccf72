"""Random numbers computed from (seed, purpose, position), never carried.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer operations: the same
bits on every device, for any batch, in any order. A resume needs no generator state, and a change of world
size draws the same numbers for the same samples.
"""

import ctypes
import math
import warnings
from functools import cache
from typing import Any, Final, Literal

import torch

from bigdiff.runtime.compiled import library

Purpose = Literal[
    "timestep",
    "noise",
    "posterior",
    "text_dropout",
    "preview",
    "framing",
    "offset_noise",
    "input_perturbation",
    "stratum",
    "sobol_order",
    "sobol",
]
# A purpose's number is part of every run's identity: add at the end, never renumber.
PURPOSES: dict[str, int] = {
    "timestep": 0,
    "noise": 1,
    "posterior": 2,
    "text_dropout": 3,
    "preview": 4,
    "framing": 5,  # crop and flip of pictures
    "offset_noise": 6,
    "input_perturbation": 7,
    "stratum": 8,  # by step, not by position
    "sobol_order": 9,  # by node of a binary tree
    "sobol": 10,  # likewise
}

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF

_compiled: Final = library("bigdiff.runtime._philox").bigdiff_philox
_compiled.restype = None
_compiled.argtypes = [*[ctypes.c_uint32] * 3, ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p]

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four int64 tensors of one shape, uint32 counters -> four of uint32 outputs."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves right
        product0, product1 = c0 * _M0, c2 * _M1
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK, high0 ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def bits(seed: int, purpose: Purpose, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Uint32 values (as int64) of shape [B, count] for int64 `positions` [B] of samples in the run."""
    draw = by_cpu if positions.device.type == "cpu" else by_torch
    kernels = fused(positions.device)
    if kernels is not None:
        draw = kernels.words
    return draw(_key(seed), PURPOSES[purpose], positions.to(torch.int64), math.ceil(count / 4))[:, :count]


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK, (seed >> 32) & _MASK


@cache
def fused(device: torch.device) -> Any:  # noqa: ANN401 (a module)
    """bigdiff.runtime.draws where its kernels run on `device` and draw what torch draws; None where not.

    Nothing depends on it but speed, so that whatever keeps a GPU from running them is a warning.
    """
    if device.type != "cuda":
        return None
    try:
        from bigdiff.runtime import draws  # Triton comes with torch on Linux alone

        given = (12345, 678), 1, torch.arange(2**33, 2**33 + 3, device=device)
        words = by_torch(*given, 10)
        drawn = draws.normal(*given, 40)
        same = torch.equal(draws.words(*given, 10), words) and torch.allclose(drawn, _box_muller(words), atol=1e-5)
        problem = "" if same else "they draw other numbers than torch"
    except Exception as error:  # noqa: BLE001 (of a compiler, a driver, an import)
        problem = " ".join(str(error).split()) or repr(error)
    if problem:
        warnings.warn(
            f"random numbers are drawn by torch's operations, not by kernels of ours: {problem}", stacklevel=2
        )
        return None
    return draws


def by_torch(key: tuple[int, int], number: int, positions: torch.Tensor, blocks: int) -> torch.Tensor:
    """Words int64 [B, 4 blocks] on the positions' device."""
    position, shape = positions[:, None], (len(positions), blocks)
    counter = (
        torch.arange(blocks, device=positions.device)[None, :].expand(shape),
        (position & _MASK).expand(shape),
        (position >> 32).expand(shape),
        torch.full(shape, number, dtype=torch.int64, device=positions.device),
    )
    return torch.stack(philox(counter, key), dim=-1).reshape(len(positions), blocks * 4)


def by_cpu(key: tuple[int, int], number: int, positions: torch.Tensor, blocks: int) -> torch.Tensor:
    """The same of int64 positions on the CPU, by `_philox.c`."""
    positions, words = positions.contiguous(), torch.empty((len(positions), blocks * 4), dtype=torch.int64)
    _compiled(*key, number, positions.data_ptr(), len(positions), blocks, words.data_ptr())
    return words


def uniform(seed: int, purpose: Purpose, positions: torch.Tensor) -> torch.Tensor:
    """One float64 in [0, 1) per position, shape [B]; 53 random bits."""
    words = bits(seed, purpose, positions, 2)  # times a float they would be float32, of 24 bits, and rounded up to 1
    return ((words[:, 0] >> 5 << 26) + (words[:, 1] >> 6)).to(torch.float64) / 2.0**53


def integers(seed: int, purpose: Purpose, positions: torch.Tensor, below: int) -> torch.Tensor:
    """One int64 in [0, below) per position, shape [B]; `below` <= 2^31, bias under below / 2^32."""
    return (bits(seed, purpose, positions, 1)[:, 0] * below) >> 32


def normal(seed: int, purpose: Purpose, positions: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal fp32 of shape [B, *shape], by Box & Muller (1958) from pairs of uint32."""
    count, kernels = math.prod(shape), fused(positions.device)
    if kernels is not None and count % 8 == 0:
        drawn: torch.Tensor = kernels.normal(_key(seed), PURPOSES[purpose], positions.to(torch.int64), count)
        return drawn.reshape(len(positions), *shape)
    words = bits(seed, purpose, positions, 2 * math.ceil(count / 2))
    return _box_muller(words)[:, :count].reshape(len(positions), *shape)


def _box_muller(words: torch.Tensor) -> torch.Tensor:
    """Normal fp32 [B, N] of uint32 words [B, N], N even: radii of the first half, angles of the second."""
    first, second = words.to(torch.float32).chunk(2, dim=1)
    # (word + 0.5) / 2^32 lies in (0, 1]: fp32 rounds the largest words to 1, whose logarithm is 0, never infinite
    radius = torch.sqrt(-2.0 * torch.log((first + 0.5) * 2.0**-32))
    angle = second * (2.0 * math.pi * 2.0**-32)
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
