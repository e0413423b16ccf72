"""Sums between two log lines, kept on the device, so that no step waits for the host."""

import resource
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from bigdiff.runtime.clock import Clock
from bigdiff.runtime.world import World

BINS = 10  # equal timestep ranges of the loss by noise level


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Means over all processes since the last reading."""

    loss: float  # what is optimised: the weighted loss
    loss_by_bin: tuple[float | None, ...]  # unweighted, so that runs compare; None: no sample of this bin was seen
    terms: dict[str, float]  # further means, by name
    images_per_second: float
    data_wait_fraction: float  # of the wall clock, on the process that waited most
    communication_fraction: float | None  # of the wall clock, in the engine's collectives, mean of all processes
    slowest: "Slowest"
    peak_memory: float  # bytes, since the start, of the process that had most: on its GPU, or in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowest:
    """The process that took longest over its own forward passes, which wait for no other before ZeRO-3."""

    rank: int
    ratio: float  # its time over the median of all processes; 1 where nothing was timed


class Meters:
    """Adds up losses, samples and waits of this process; `take` shares them among all and starts afresh."""

    def __init__(self, timesteps: int, world: World) -> None:
        self._timesteps, self._world = timesteps, world
        self._reset()

    def _reset(self) -> None:
        self._bins = self._zeros(2, BINS)  # sum and count
        self._total = self._zeros(2)
        self._terms: dict[str, torch.Tensor] = {}
        self._wait = 0.0
        self._forward = Clock(self._world.device)
        self.empty = True  # nothing was added since the last reading; the same on all processes
        self._began = time.perf_counter()

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=self._world.device, dtype=torch.float64)

    def add(
        self, total: torch.Tensor, losses: torch.Tensor, timesteps: torch.Tensor | None, wait_seconds: float
    ) -> None:
        """What was optimised (a mean), each sample's loss fp32 [B], and its timestep int64 [B]; no synchronisation."""
        self._total += torch.stack(
            (total.detach().double() * len(losses), torch.full_like(self._total[0], len(losses)))
        )
        if timesteps is not None:
            bins = timesteps * BINS // self._timesteps
            self._bins[0].index_add_(0, bins, losses.detach().double())
            self._bins[1].index_add_(0, bins, torch.ones_like(losses, dtype=torch.float64))
        self._wait += wait_seconds
        self.empty = False

    def add_terms(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Further means over a micro-batch, the same names on all processes; no synchronisation."""
        for name, term in terms.items():
            sums = self._terms.setdefault(name, self._zeros(2))
            sums += torch.stack((term.detach().double(), torch.ones_like(sums[0])))

    def forward(self) -> AbstractContextManager[None]:
        """Time a forward pass; no synchronisation."""
        return self._forward.running()

    def take(self, communication: float | None = None) -> Reading:
        """Means over all processes, with this one's seconds in the engine's collectives, where known; collective."""
        elapsed = time.perf_counter() - self._began
        names = sorted(self._terms)
        flat = torch.cat([self._total, self._bins.flatten(), *(self._terms[name] for name in names)])
        shared = (self._world.mean(flat) * self._world.size).cpu().tolist()
        mine = torch.tensor([self._wait, self._forward.take(), peak_memory(self._world.device), communication or 0.0])
        waits, times, peaks, sent = self._world.every(mine).T.tolist()
        total, seen, *rest = shared
        bins, terms = (rest[:BINS], rest[BINS : 2 * BINS]), rest[2 * BINS :]
        reading = Reading(
            loss=total / seen,
            loss_by_bin=tuple(one / count if count else None for one, count in zip(*bins, strict=True)),
            terms={name: terms[2 * at] / terms[2 * at + 1] for at, name in enumerate(names)},
            images_per_second=seen / elapsed,
            data_wait_fraction=max(waits) / elapsed,
            communication_fraction=None if communication is None else statistics.mean(sent) / elapsed,
            slowest=slowest(times),
            peak_memory=max(peaks),
        )
        self._reset()
        return reading


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process had at once so far: of its GPU, as torch allocated them, or resident."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # KiB on Linux


def slowest(times: list[float]) -> Slowest:
    """Of each process's time, by rank."""
    longest, middle = max(times), statistics.median(times)
    return Slowest(rank=times.index(longest), ratio=longest / middle if middle else 1.0)
