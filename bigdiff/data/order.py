"""Which sample stands at which position of a run: arithmetic on shard sizes, no I/O, no state.

Position p of a run over N samples lies in epoch p // N. In each epoch the shards are permuted, consecutive shards
form windows, and the samples of a window are shuffled together. The world size is not an input, so any number of
processes reads the same global order; the memory is one window (MosaicML Streaming's py1b idea, as pure functions).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a shard set: `sizes` are samples per shard, `window` counts shards shuffled together."""

    sizes: tuple[int, ...]
    seed: int
    window: int

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        return sum(self.sizes)

    def locate(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Shard and row of the positions start ... start + count - 1, each int64 [count]."""
        shards, rows = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, within = divmod(start + done, _total(self.sizes))
            begin, window_shards, window_rows = _window_at(self, epoch, within)
            skip = within - begin
            take = min(count - done, len(window_rows) - skip)
            shards[done : done + take] = window_shards[skip : skip + take]
            rows[done : done + take] = window_rows[skip : skip + take]
            done += take
        return shards, rows


@lru_cache(maxsize=8)
def _total(sizes: tuple[int, ...]) -> int:
    return sum(sizes)


@lru_cache(maxsize=4)
def _epoch(sizes: tuple[int, ...], seed: int, window: int, epoch: int) -> tuple[Ints, Ints]:
    """Shards in this epoch's order, and the position at which each window begins (one entry more at the end)."""
    shards = _permutation(len(sizes), seed, epoch, 0)
    ends = np.cumsum(np.asarray(sizes, np.int64)[shards])
    begins = np.concatenate(([0], ends[window - 1 :: window], ends[-1:] if len(sizes) % window else []))
    return shards, begins.astype(np.int64)


@lru_cache(maxsize=4)
def _window(order: Order, epoch: int, number: int) -> tuple[Ints, Ints]:
    shards, _ = _epoch(order.sizes, order.seed, order.window, epoch)
    members = shards[number * order.window : (number + 1) * order.window]
    sizes = np.asarray([order.sizes[shard] for shard in members], np.int64)
    owner = np.repeat(members, sizes)
    row = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    shuffled = _permutation(len(owner), order.seed, epoch, number + 1)
    return owner[shuffled], row[shuffled]


def _window_at(order: Order, epoch: int, within: int) -> tuple[int, Ints, Ints]:
    _, begins = _epoch(order.sizes, order.seed, order.window, epoch)
    number = int(np.searchsorted(begins, within, side="right")) - 1
    shards, rows = _window(order, epoch, number)
    return int(begins[number]), shards, rows


def _permutation(count: int, seed: int, epoch: int, stream: int) -> Ints:
    # Sorting raw Philox words: numpy promises the bit stream across versions, but not Generator.permutation's use of
    # it. A tie among 64-bit words is broken by the stable sort.
    counter = np.array([0, 0, epoch, stream], np.uint64)
    key = np.array([seed & (2**64 - 1), 0], np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)
