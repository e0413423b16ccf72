"""What a course costs and how well it mixes, before any byte is moved: shards fetched per epoch, shards per batch.

    python -m bigdiff.data.egress FOLDER --nodes 16 --batch 2048 --window 16 64 256

The ranks of a node share a cache, so only nodes count. Fetches are exact: every window of every lane in order of need,
idle shards evicted least recently used. Where a node's current windows do not fit its cache at once, its samples are
taken to miss at the rate at which the windows' bytes exceed it. Mixing is a simulation: at `SAMPLED` steps spread over
an epoch, what a lane takes from a window is drawn without replacement from its shards' sizes.
"""

import argparse
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bigdiff.config.errors import UsageError, door
from bigdiff.data import manifest
from bigdiff.data.course import Course, Need
from bigdiff.data.mixture import Source
from bigdiff.data.shares import Ints

SAMPLED = 64
_Key = tuple[int, int]  # source and shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Egress:
    """What is fetched from the store, as multiples of the bytes of all sources."""

    first: float  # in the first epoch
    later: float  # in the second, with what the caches still hold
    busiest: float  # what the busiest node fetches in both, over what the average node does
    live_bytes: int  # most bytes of the windows that a node reads at a time: what its cache must hold


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """Distinct source shards per global batch, over the sampled steps."""

    mean: float
    least: int


@dataclass
class _Node:
    """The shards on one node's disk: those of the current windows are pinned, the others wait to be evicted."""

    room: float
    sizes: tuple[Ints, ...]  # bytes of each shard of each source
    pins: Counter[_Key] = field(default_factory=Counter)
    idle: OrderedDict[_Key, None] = field(default_factory=OrderedDict)
    pinned_bytes: int = 0
    idle_bytes: int = 0
    most: int = 0

    def size(self, key: _Key) -> int:
        return int(self.sizes[key[0]][key[1]])

    def pin(self, keys: list[_Key]) -> int:
        """Bytes fetched to have these shards, which stay until they are released."""
        fetched = 0
        for key in keys:
            self.pins[key] += 1
            if self.pins[key] > 1:
                continue
            size = self.size(key)
            self.pinned_bytes += size
            if key in self.idle:
                del self.idle[key]
                self.idle_bytes -= size
            else:
                fetched += size
        self.most = max(self.most, self.pinned_bytes)
        while self.idle and self.pinned_bytes + self.idle_bytes > self.room:
            evicted, _ = self.idle.popitem(last=False)
            self.idle_bytes -= self.size(evicted)
        return fetched

    def release(self, keys: list[_Key]) -> None:
        for key in keys:
            self.pins[key] -= 1
            if not self.pins[key]:
                del self.pins[key]
                size = self.size(key)
                self.pinned_bytes -= size
                self.idle_bytes += size
                self.idle[key] = None

    def misses(self, samples: int) -> float:
        """Bytes fetched again for this many samples because the current windows do not fit at once."""
        if self.pinned_bytes <= self.room or not samples:
            return 0.0
        return samples * (1 - self.room / self.pinned_bytes) * self.pinned_bytes / len(self.pins)


def epoch_steps(course: Course) -> int:
    """Whole steps in which as many samples are read as all sources have, or all steps of a course that ends before."""
    steps = max(sum(source.samples for source in course.sources) // course.total, 1)
    return steps if course.steps is None else min(steps, course.steps)


def egress(course: Course, sizes: tuple[Ints, ...], nodes: int, cache: float = np.inf) -> Egress:
    """What `nodes` nodes with `cache` bytes of disk each fetch; `sizes` are the bytes of each source's shards.

    Raises:
        UsageError: when the global batch cannot be dealt evenly to the nodes.
    """
    if nodes < 1 or course.total % nodes:
        raise UsageError(
            f"{course.total} samples a step cannot be dealt evenly to {nodes} nodes: choose a number that divides it"
        )
    steps, share = epoch_steps(course), course.total // nodes
    fetched, most = np.zeros((nodes, 2)), 0
    for number in range(nodes):
        node = _Node(room=cache, sizes=sizes)
        fetched[number] = _fetched(course, node, (number * share, (number + 1) * share), steps)
        most = max(most, node.most)
    whole = sum(int(held.sum()) for held in sizes)
    first, later = (fetched.sum(0) / whole).tolist()
    busiest = float(fetched.sum(1).max() / fetched.sum(1).mean())
    return Egress(first=first, later=later, busiest=busiest, live_bytes=most)


def _fetched(course: Course, node: _Node, part: tuple[int, int], steps: int) -> list[float]:
    fetched, now, live = [0.0, 0.0], 0, dict[tuple[int, int], list[_Key]]()
    for need in _needs(course, part, 2 * steps):
        epoch = need.step // steps
        fetched[now // steps] += node.misses((need.step - now) * (part[1] - part[0]))
        keys = [(need.source, shard) for shard in need.shards]
        node.release(live.pop((need.cell, need.lane), []))
        fetched[epoch] += node.pin(keys)
        live[need.cell, need.lane], now = keys, need.step
    fetched[now // steps] += node.misses((2 * steps - now) * (part[1] - part[0]))
    return fetched


def _needs(course: Course, part: tuple[int, int], end: int) -> Iterator[Need]:
    chains = heapq.merge(*course.windows(0, *part), key=lambda need: need.step)
    return takewhile(lambda need: need.step < end, chains)


def mixing(course: Course, sampled: int = SAMPLED) -> Mixing:
    """How many shards a global batch comes from, at `sampled` steps of an epoch (all when it has fewer)."""
    steps = epoch_steps(course)
    chosen = np.unique(np.linspace(0, steps - 1, min(sampled, steps)).astype(np.int64)).tolist()
    found = [len(_batch(course, step)) for step in chosen]
    return Mixing(mean=float(np.mean(found)), least=min(found))


def _batch(course: Course, step: int) -> set[_Key]:
    random = np.random.Generator(np.random.Philox(key=step))
    after = course.turns(step + 1)
    found: set[_Key] = set()
    for chain in course.windows(step, 0, course.total):
        read = list(takewhile(lambda need: need.step == step, chain))
        for place, need in enumerate(read):
            last = read[place + 1].turn if place + 1 < len(read) else after[need.cell]
            sizes = course.sources[need.source].sizes[list(need.shards)]
            drawn = random.multivariate_hypergeometric(sizes, min(last - need.turn, int(sizes.sum())))
            found.update((need.source, need.shards[shard]) for shard in np.flatnonzero(drawn))
    return found


def table(held: manifest.Manifest, arguments: argparse.Namespace) -> Table:
    """A row for each window: egress of two epochs, load, disk, and mixing."""
    lanes = arguments.lanes or arguments.nodes
    title = f"{held.samples:,} samples in {len(held.shards):,} shards on {arguments.nodes} nodes, {lanes} lanes"
    shown = Table(title=title)
    for column in ("window", "first epoch", "later epochs", "busiest node", "windows on disk", "shards per batch"):
        shown.add_column(column, justify="right")
    source = Source(name=str(arguments.folder), sizes=held.sizes, buckets=held.buckets)
    sizes = (np.array([shard.bytes for shard in held.shards], np.int64),)
    for window in arguments.window:
        course = Course(sources=(source,), seed=arguments.seed, window=window, lanes=lanes, total=arguments.batch)
        cost = egress(course, sizes, arguments.nodes, arguments.cache_gb * 1e9)
        mixed = mixing(course)
        shown.add_row(
            str(window),
            f"{cost.first:.2f}",
            f"{cost.later:.2f}",
            f"{cost.busiest:.2f}",
            f"{cost.live_bytes / 1e9:.3g} GB",
            f"{mixed.mean:.0f} (least {mixed.least})",
        )
    return shown


def main() -> None:
    """Parse, simulate, show."""
    parser = argparse.ArgumentParser(
        prog="python -m bigdiff.data.egress",
        description="Bytes fetched per epoch, as a multiple of the set, and shards per batch; reads manifest.json only",
    )
    parser.add_argument("folder", type=Path, help="shard set")
    parser.add_argument("--nodes", type=int, required=True, help="machines, each with a cache its ranks share")
    parser.add_argument("--batch", type=int, default=2048, help="samples per optimizer step (default: 2048)")
    parser.add_argument("--window", type=int, nargs="+", default=[16, 64, 256], help="default: 16 64 256")
    parser.add_argument("--lanes", type=int, default=0, help="canonical nodes (default: --nodes)")
    parser.add_argument("--cache-gb", type=float, default=np.inf, help="disk of a node in 1e9 bytes (default: no end)")
    parser.add_argument("--kind", choices=("latents", "images"), default="latents", help="default: latents")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    arguments = parser.parse_args()
    Console(soft_wrap=True, highlight=False).print(table(manifest.read(arguments.folder, arguments.kind), arguments))


if __name__ == "__main__":
    door(main)
