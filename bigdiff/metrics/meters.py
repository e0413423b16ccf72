"""Sums between two log lines, kept on the device, so that no step waits for the host."""

import time
from dataclasses import dataclass

import torch

from bigdiff.runtime.world import World

BINS = 10  # equal timestep ranges of the loss by noise level


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Means over all processes since the last reading."""

    loss: float
    loss_by_bin: tuple[float | None, ...]  # None: no sample of this bin was seen
    images_per_second: float
    data_wait_fraction: float  # of the wall clock, on the process that waited most


class Meters:
    """Adds up losses, samples and waits of this process; `take` shares them among all and starts afresh."""

    def __init__(self, timesteps: int, world: World) -> None:
        self._timesteps, self._world = timesteps, world
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(2, BINS, device=self._world.device, dtype=torch.float64)
        self._wait = 0.0
        self._began = time.perf_counter()

    def add(self, losses: torch.Tensor, timesteps: torch.Tensor, wait_seconds: float) -> None:
        """Losses fp32 [B] and timesteps int64 [B] of one micro-batch; no synchronisation with the device."""
        bins = timesteps * BINS // self._timesteps
        self._sums[0].index_add_(0, bins, losses.detach().double())
        self._sums[1].index_add_(0, bins, torch.ones_like(losses, dtype=torch.float64))
        self._wait += wait_seconds

    def take(self) -> Reading:
        """Means over all processes; collective."""
        elapsed = time.perf_counter() - self._began
        sums, counts = (self._world.mean(self._sums) * self._world.size).cpu()
        waited = float(self._world.largest(torch.tensor([self._wait])).item())
        seen = float(counts.sum())
        reading = Reading(
            loss=float(sums.sum()) / seen,
            loss_by_bin=tuple(float(s) / float(n) if n else None for s, n in zip(sums, counts, strict=True)),
            images_per_second=seen / elapsed,
            data_wait_fraction=waited / elapsed,
        )
        self._reset()
        return reading
