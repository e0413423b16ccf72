"""Which samples make up each global batch of a run, over weighted sources and buckets: arithmetic, no I/O, no state.

Step s is in one bucket; its batch is `lanes` rows of total / lanes samples, and every row draws the bucket's cells
(source x bucket) in the same turns, so that lane l of each cell is read by row l alone. A node that reads rows of a
batch thus reads its own lanes of every source, and a run's whole data state is one integer, the step.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice

import numpy as np

from bigdiff.config.errors import UsageError
from bigdiff.data.mixture import Cell, Source, cells, check
from bigdiff.data.order import Ints, Order
from bigdiff.data.phases import Grid, Mixture, Phase, Plan, plan
from bigdiff.data.shares import DRAWS

FORMAT = 1  # of the order: another number is another order


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Picks:
    """Samples of a batch, in order: source, and shard and row in its manifest, each int64 [n]."""

    bucket: str
    sources: Ints
    shards: Ints
    rows: Ints


def joined(parts: Sequence[Picks]) -> Picks:
    """Several of one bucket, one behind the other."""
    return Picks(
        bucket=parts[0].bucket,
        sources=np.concatenate([part.sources for part in parts]),
        shards=np.concatenate([part.shards for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """A window of shards, and the first step in which a slice of the batches reads from it."""

    step: int
    turn: int  # samples that the lane had from the cell before
    source: int
    cell: int
    lane: int
    shards: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """The samples of every step of a run. Equal arguments give equal courses on every machine and world size.

    `window`: shards shuffled together; `lanes`: canonical nodes, which must divide `total`, the samples of a step.

    Raises:
        UsageError: for shares that cannot be given, and lanes that do not divide the batch.
    """

    sources: tuple[Source, ...]
    seed: int
    window: int
    lanes: int
    total: int
    cells: tuple[Cell, ...] = field(init=False, repr=False)
    orders: tuple[Order, ...] = field(init=False, repr=False)  # of each cell
    _grid: Grid = field(init=False, repr=False)
    _plan: Plan = field(init=False, repr=False)
    _alone: tuple[bool, ...] = field(init=False, repr=False)  # whether a cell is the only one ever in its bucket
    _starts: tuple[int, ...] = field(init=False, repr=False)  # first step of each phase
    _given: tuple[tuple[int, ...], ...] = field(init=False, repr=False)  # of each cell: turns before each phase

    def __post_init__(self) -> None:
        if min(self.lanes, self.total, self.window) < 1 or self.total % self.lanes:
            raise UsageError(
                f"{self.total} samples a step cannot be dealt to {self.lanes} lanes of equal length (window "
                f"{self.window}): choose a positive number of lanes that divides the samples of a step"
            )
        grid = Grid(total=self.total, lanes=self.lanes)
        if grid.turns > DRAWS:
            raise UsageError(f"{grid.turns} samples of a lane in a step are more than {DRAWS}: use more lanes")
        check(self.sources)
        found = cells(self.sources)
        sharing = Counter(cell.bucket for cell in found)
        laid = plan(Mixture(sources=self.sources, cells=found, seed=self.seed, grid=grid))
        history = [phase.given for phase in laid.phases] + ([laid.given] if laid.end is not None else [])
        values = {
            "cells": found,
            "orders": tuple(self._order(number, cell, sharing[cell.bucket]) for number, cell in enumerate(found)),
            "_grid": grid,
            "_plan": laid,
            "_alone": tuple(sharing[cell.bucket] == 1 for cell in found),
            "_starts": tuple(phase.start for phase in laid.phases),
            "_given": tuple(zip(*history, strict=True)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _order(self, number: int, cell: Cell, sharing: int) -> Order:
        # A cell alone in its bucket fills whole rows. One that shares steps gives 0 or more turns: chunk 1 keeps every
        # lane's turn in that lane, whatever the shares of a later phase are.
        chunk = self.total // self.lanes if sharing == 1 else 1
        sizes, seed = cell.sizes, self.seed
        return Order(sizes=sizes, seed=seed, window=self.window, lanes=self.lanes, chunk=chunk, stream=number)

    @property
    def steps(self) -> int | None:
        """Steps after which every source is exhausted; None: one never is."""
        return self._plan.end

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of everything that fixes the order; the sources' names do not."""
        content = hashlib.sha256(json.dumps([FORMAT, self.seed, self.window, self.lanes, self.total]).encode())
        for source in self.sources:
            shares = [source.proportion, source.upsample, source.repeat, source.until, len(source.sizes)]
            content.update(json.dumps(shares).encode())
        for cell in self.cells:
            content.update(json.dumps([cell.source, cell.bucket, len(cell.shards)]).encode())
            content.update(cell.shards.astype("<i8").tobytes() + cell.sizes.astype("<i8").tobytes())
        return content.hexdigest()

    def bucket_of(self, step: int) -> str:
        """The bucket that every sample of `step` is in."""
        phase = self._phase(step)
        return phase.names[phase.schedule.at(step - phase.start)[0]]

    def given(self, step: int) -> tuple[int, ...]:
        """How many samples each source gave before `step`."""
        sums = [0] * len(self.sources)
        for cell, turns in zip(self.cells, self.turns(step), strict=True):
            sums[cell.source] += turns * self.lanes
        return tuple(sums)

    def turns(self, step: int) -> tuple[int, ...]:
        """How many samples each lane had from each cell before `step`; the same in all lanes."""
        if self.steps is not None and step >= self.steps:
            return self._plan.given
        return tuple(self._phase(step).turns_before(step, self._grid))

    def locate(self, step: int, begin: int, end: int) -> Picks:
        """The samples at offsets [begin, end) of the global batch of `step`.

        Raises:
            UsageError: for a step at which every source is exhausted.
        """
        phase = self._phase(step)
        bucket, before = phase.schedule.at(step - phase.start)
        first = phase.cells[bucket][0]
        if self._alone[first]:
            start = (phase.given[first] + before * self._grid.turns) * self.lanes
            shards, rows = self.orders[first].locate(start + begin, end - begin)
            sources = np.full(end - begin, self.cells[first].source, np.int64)
            return Picks(bucket=phase.names[bucket], sources=sources, shards=self._named(first, shards), rows=rows)
        return self._mixed(phase, bucket, before, (begin, end))

    def substitute(self, position: int, attempt: int) -> tuple[int, int, int]:
        """Source, shard and row of another sample for a run position: same bucket, source and window while they last.

        `attempt` counts from 1.
        """
        step, offset = divmod(position, self.total)
        phase = self._phase(step)
        bucket, before = phase.schedule.at(step - phase.start)
        lane, turn = divmod(offset, self._grid.turns)
        members, turns = phase.shares[bucket].draws(before * self._grid.turns + turn, 1)
        cell = phase.cells[bucket][int(members[0])]
        at = self._position(cell, lane, phase.given[cell] + int(turns[0]))
        shard, row = self.orders[cell].substitute(at, attempt)
        return self.cells[cell].source, int(self.cells[cell].shards[shard]), row

    def find(self, source: int, shard: int, row: int, until: int) -> list[int]:
        """All run positions below `until` at which that sample stands, ascending."""
        found: list[int] = []
        cell = self._cell_of(source, shard)
        local = int(np.searchsorted(self.cells[cell].shards, shard))
        for epoch in count():
            place = self._place(cell, self.orders[cell].find(epoch, local, row))
            if place is None or place[0] * self.total >= until:
                return sorted(position for position in found if position < until)
            found.append(place[0] * self.total + place[1])
        raise AssertionError("an endless loop ended")

    def windows(self, step: int, begin: int, end: int) -> list[Iterator[Need]]:
        """For each lane and active cell that offsets [begin, end) read from `step` on: the lane's windows in order.

        The first is the one that the lane reads from at the start of the cell's next step. Windows that the cell does
        not reach before it ends are left out.
        """
        active = [cell for cells in self._phase(step).cells for cell in cells]
        turns = self.turns(step)
        lanes = range(begin // self._grid.turns, (end - 1) // self._grid.turns + 1)
        return [self._chain(cell, lane, turns[cell]) for lane in lanes for cell in active]

    def ahead(self, step: int, begin: int, end: int, windows: int) -> list[tuple[int, int]]:
        """Source and shard of what a slice reads from `step` on: each lane's and cell's window and the next `windows`.

        In order of need, each once; lanes that the slice shares with another are taken whole.
        """
        needs = [need for chain in self.windows(step, begin, end) for need in islice(chain, windows + 1)]
        needs.sort(key=lambda need: (need.step, need.lane, need.cell))
        return list(dict.fromkeys((need.source, shard) for need in needs for shard in need.shards))

    def turnover(self, step: int, begin: int, end: int) -> int | None:
        """The first step behind `step` in which a slice enters another window; None: it never does."""
        entered = [need.step for chain in self.windows(step, begin, end) for need in islice(chain, 1, 2)]
        return max(min(entered), step + 1) if entered else None

    def _phase(self, step: int) -> Phase:
        if self.steps is not None and step >= self.steps:
            raise UsageError(
                f"nothing is left to draw at step {step}: by their repeat and until the sources give {self.steps} "
                f"steps of {self.total} samples; raise them or end the run there"
            )
        return self._plan.phases[bisect_right(self._starts, step) - 1]

    def _mixed(self, phase: Phase, bucket: int, before: int, part: tuple[int, int]) -> Picks:
        offsets = np.arange(*part, dtype=np.int64)
        lanes, turns = np.divmod(offsets, self._grid.turns)
        first, last = divmod(part[0], self._grid.turns), divmod(part[1] - 1, self._grid.turns)
        low, high = (first[1], last[1] + 1) if first[0] == last[0] else (0, self._grid.turns)  # rows are drawn alike
        members, numbers = phase.shares[bucket].draws(before * self._grid.turns + low, high - low)
        members, numbers = members[turns - low], numbers[turns - low]
        sources, shards, rows = (np.empty_like(offsets) for _ in range(3))
        for member, cell in enumerate(phase.cells[bucket]):
            chosen = np.flatnonzero(members == member)
            if len(chosen):  # chunk is 1, so lane l has every lanes-th position from l on
                positions = (phase.given[cell] + numbers[chosen]) * self.lanes + lanes[chosen]
                found, rows[chosen] = self.orders[cell].at(positions)
                sources[chosen], shards[chosen] = self.cells[cell].source, self._named(cell, found)
        return Picks(bucket=phase.names[bucket], sources=sources, shards=shards, rows=rows)

    def _named(self, cell: int, shards: Ints) -> Ints:
        held = self.cells[cell].shards
        return shards if len(held) == len(self.sources[self.cells[cell].source].sizes) else held[shards]

    def _cell_of(self, source: int, shard: int) -> int:
        names = self.sources[source].buckets
        bucket = names[shard] if names else ""
        return next(number for number, cell in enumerate(self.cells) if (cell.source, cell.bucket) == (source, bucket))

    def _position(self, cell: int, lane: int, turn: int) -> int:
        chunk = self.orders[cell].chunk
        rounds, rest = divmod(turn, chunk)
        return (rounds * self.lanes + lane) * chunk + rest

    def _turn(self, cell: int, position: int) -> tuple[int, int]:
        # lane and turn of a cell's position: the inverse of _position
        chunk = self.orders[cell].chunk
        rounds, rest = divmod(position, chunk)
        return rounds % self.lanes, rounds // self.lanes * chunk + rest

    def _place(self, cell: int, position: int) -> tuple[int, int] | None:
        # step and offset of a cell's position; None when the cell ends before
        lane, turn = self._turn(cell, position)
        number = bisect_right(self._given[cell], turn) - 1
        if number == len(self._plan.phases):
            return None
        phase = self._plan.phases[number]
        bucket = bisect_left(phase.names, self.cells[cell].bucket)
        if bucket == len(phase.names) or cell not in phase.cells[bucket]:
            return None
        draw = phase.draw_of(bucket, phase.cells[bucket].index(cell), turn)
        steps, within = divmod(draw, self._grid.turns)
        return phase.start + phase.schedule.step_of(bucket, steps), lane * self._grid.turns + within

    def _chain(self, cell: int, lane: int, turn: int) -> Iterator[Need]:
        source, order = self.cells[cell].source, self.orders[cell]
        position = self._position(cell, lane, turn)
        while (place := self._place(cell, position)) is not None:
            turn = self._turn(cell, position)[1]
            shards = tuple(self._named(cell, order.window_shards(position)).tolist())
            yield Need(step=place[0], turn=turn, source=source, cell=cell, lane=lane, shards=shards)
            position = order.next_window(position)
