"""The phases of a run: while the same cells are active the shares are constant, so all counts are closed form.

`until` and `repeat` end a phase at the first step boundary at which a source's samples_seen is reached or a cell has
given its passes: it gives at most one step more than was asked for. Nothing here visits the steps of a run.

Cells are counted in turns: one turn is one sample in every lane, so that each lane has its exact part of every step.
"""

from dataclasses import dataclass

from bigdiff.config.errors import UsageError
from bigdiff.data.buckets import Buckets
from bigdiff.data.mixture import Cell, Source, weights
from bigdiff.data.shares import Shares, shares_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A global batch of `total` samples is `lanes` rows of `turns` samples."""

    total: int
    lanes: int

    @property
    def turns(self) -> int:
        """Samples of a lane in a step."""
        return self.total // self.lanes


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Steps [start, end) with the same active cells."""

    start: int
    given: tuple[int, ...]  # turns of each cell (active or not) before the phase
    names: tuple[str, ...]  # of the buckets
    schedule: Buckets
    cells: tuple[tuple[int, ...], ...]  # of each bucket: numbers of its active cells
    shares: tuple[Shares, ...]  # of each bucket, over its active cells

    def turns_before(self, step: int, grid: Grid) -> list[int]:
        """Turns of each cell before `step` of the run, which lies in this phase or ends it."""
        given = list(self.given)
        for bucket, steps in enumerate(self.schedule.before(step - self.start)):
            counts = self.shares[bucket].counts(steps * grid.turns)
            for cell, count in zip(self.cells[bucket], counts, strict=True):
                given[cell] += count
        return given

    def draw_of(self, bucket: int, member: int, turn: int) -> int:
        """The draw of the bucket (turn within its steps) at which its member has turn number `turn` of the run."""
        return self.shares[bucket].draw_of(member, turn - self.given[self.cells[bucket][member]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """What the phases follow from."""

    sources: tuple[Source, ...]
    cells: tuple[Cell, ...]
    seed: int
    grid: Grid

    def until(self, source: int) -> int | None:
        """The first step in which the source gives nothing because of its `until`."""
        until = self.sources[source].until
        return None if until is None else -(-until // self.grid.total)

    def limit(self, cell: int) -> int | None:
        """The turns after which the cell ends."""
        limit = self.cells[cell].limit
        return None if limit is None else -(-limit // self.grid.lanes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All phases of a run in order; `end` is the step at which every source is exhausted, None when one never is."""

    phases: tuple[Phase, ...]
    end: int | None
    given: tuple[int, ...]  # turns of each cell before `end`, or before the last phase


def plan(mixture: Mixture) -> Plan:
    """The phases of a run.

    Raises:
        UsageError: for a source that would give nothing at all.
    """
    phases: list[Phase] = []
    start, given = 0, [0] * len(mixture.cells)
    while active := _active(mixture, start, given):
        phase = _phase(mixture, active, start, (len(phases), given))
        phases.append(phase)
        end = _end(mixture, phase)
        if end is None:
            return Plan(phases=tuple(phases), end=None, given=tuple(given))
        start, given = end, phase.turns_before(end, mixture.grid)
        _check_given(mixture, start, given)
    return Plan(phases=tuple(phases), end=start, given=tuple(given))


def _active(mixture: Mixture, step: int, given: list[int]) -> list[int]:
    found = []
    for number, cell in enumerate(mixture.cells):
        until, limit = mixture.until(cell.source), mixture.limit(number)
        if (until is None or step < until) and (limit is None or given[number] < limit):
            found.append(number)
    return found


def _phase(mixture: Mixture, active: list[int], start: int, history: tuple[int, list[int]]) -> Phase:
    number, given = history
    cells: dict[str, list[int]] = {}
    shares: dict[str, list[int]] = {}
    held = [mixture.cells[cell] for cell in active]
    for cell, weight in zip(active, weights(mixture.sources, held), strict=True):
        bucket = mixture.cells[cell].bucket
        cells.setdefault(bucket, []).append(cell)
        shares.setdefault(bucket, []).append(weight)
    names = tuple(sorted(cells))
    steps = shares_of(tuple(sum(shares[name]) for name in names))
    return Phase(
        start=start,
        given=tuple(given),
        names=names,
        schedule=Buckets(shares=steps, seed=mixture.seed, phase=number),
        cells=tuple(tuple(cells[name]) for name in names),
        shares=tuple(shares_of(tuple(shares[name])) for name in names),
    )


def _end(mixture: Mixture, phase: Phase) -> int | None:
    # the first step boundary, counted from the run's start, at which a source or a cell ends
    ends, last = [], []
    for bucket, cells in enumerate(phase.cells):
        for member, cell in enumerate(cells):
            until, limit = mixture.until(mixture.cells[cell].source), mixture.limit(cell)
            if until is not None:
                ends.append(until)
            if limit is not None:
                turn = phase.draw_of(bucket, member, limit - 1) // mixture.grid.turns
                last.append((phase.schedule.block_of(bucket, turn), bucket, turn))
    # only the block of 16 steps in which the first cell ends is laid out
    first = min(last, default=(0,))[0]
    ends += [phase.start + phase.schedule.step_of(bucket, turn) + 1 for block, bucket, turn in last if block == first]
    return min(ends, default=None)


def _check_given(mixture: Mixture, step: int, given: list[int]) -> None:
    for number, source in enumerate(mixture.sources):
        until = mixture.until(number)
        turns = sum(count for cell, count in zip(mixture.cells, given, strict=True) if cell.source == number)
        if until is not None and step >= until and not turns:
            raise UsageError(
                f"{source.name}: its share is so small that it gives nothing before until = {source.until}: raise its "
                f"share or until, or leave the source out"
            )
