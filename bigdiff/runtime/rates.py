"""How fast this process's device multiplies and copies, and how fast the processes exchange: seconds of measuring.

All processes measure at the same time, as they will work at the same time: power, heat and cores are shared.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
import torch.distributed as dist

from bigdiff.runtime.world import World

SECONDS: Final = 0.5  # of each measurement, after one call to warm up
_CHUNK: Final = 64  # of whole numbers, so that their sums are exact in fp32 up to 2^24 / 64 processes


def matmul(device: torch.device) -> tuple[float, float]:
    """FLOP/s of square matrices, bf16 on a GPU, fp32 on a CPU; and the mean magnitude of their product.

    The matrices are the same everywhere, so the product is, too, but for rounding.
    """
    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    numbers = torch.arange(size * size, device=device, dtype=torch.int32)
    left, right = (((numbers * step) % 251 - 125).to(kind).view(size, size) / 125 for step in (7, 11))
    product = torch.empty_like(left)
    rate = _per_second(lambda: torch.mm(left, right, out=product), device)
    return 2 * size**3 * rate, float(product.float().abs().mean())


def copy(device: torch.device) -> float:
    """Bytes/s that are read and written while one buffer is copied to another."""
    one = torch.zeros(2**30 if device.type == "cuda" else 2**26, device=device, dtype=torch.uint8)
    other = torch.empty_like(one)
    return 2 * one.numel() * _per_second(lambda: other.copy_(one), device)


def free(device: torch.device) -> int:
    """Bytes of a GPU's memory that nobody uses; 0 for a CPU, whose memory nodes may share out as they like."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def all_reduce(world: World) -> tuple[float, bool]:
    """Bytes/s of the bus, as NCCL's tests count it: 2 (n - 1) / n of the tensor; and whether the sums are right."""
    count = 2**26 if world.device.type == "cuda" else 2**20
    pattern = torch.arange(count, device=world.device) % _CHUNK
    tensor = torch.empty(count, device=world.device)

    def once() -> None:
        tensor.copy_(pattern * (world.rank % _CHUNK + 1))
        dist.all_reduce(tensor)

    once()
    factor = sum(rank % _CHUNK + 1 for rank in range(world.size))
    right = bool(torch.equal(tensor, (pattern * factor).float()))
    seconds = _timed(lambda: dist.all_reduce(tensor), world.device, calls=3)
    return 2 * (world.size - 1) / world.size * tensor.nbytes / seconds, right


def links(world: World, rounds: Sequence[Mapping[int, int]]) -> float:
    """Bytes/s each way of the best of the exchanges in `rounds`, each {rank: partner}; 0 for a rank in none.

    All pairs of a round exchange at the same time.
    """
    count = 2**26 if world.device.type == "cuda" else 2**20
    mine, theirs = (torch.zeros(count, device=world.device, dtype=torch.uint8) for _ in range(2))
    best = 0.0
    for pairs in rounds:
        partner = pairs.get(world.rank)
        world.barrier()
        if partner is None:
            continue
        calls = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]

        def once(calls: Sequence[dist.P2POp] = calls) -> None:
            for work in dist.batch_isend_irecv(list(calls)):
                work.wait()

        once()  # a pair's first words connect it
        best = max(best, count / _timed(once, world.device, calls=3))
    return best


def clock(world: World) -> float:
    """Seconds that this process's clock is ahead of the median; what a barrier takes to end is the error."""
    offsets = []
    for _ in range(3):
        world.barrier()
        told = torch.tensor(world.gather(time.time()), dtype=torch.float64)
        offsets.append(told - told.median())
    least = min(offsets, key=lambda one: float(one.abs().max()))
    return float(least[world.rank])


def _per_second(work: Callable[[], object], device: torch.device) -> float:
    """Calls of `work` in a second, by the time of the fastest bunch of them."""
    work()
    bunch, best, end = 4, float("inf"), time.monotonic() + SECONDS
    while time.monotonic() < end:
        best = min(best, _timed(work, device, bunch) / bunch)
    return 1 / best


def _timed(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Seconds that `calls` of `work` take, all in all."""
    _finish(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
