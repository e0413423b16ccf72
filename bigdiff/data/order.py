"""Which sample stands at which position of a run: arithmetic on shard sizes, no I/O, no state.

Position p over N samples lies in epoch p // N. In each epoch the shards are permuted into one sequence, which is cut
into as many contiguous ranges as there are lanes (canonical nodes, as MosaicML Streaming calls them). The positions
take the lanes in turn, `chunk` of them each; within a lane consecutive shards form windows, and the samples of a
window are shuffled together. With chunk = global batch / lanes a node reads its own lanes' shards and no others.
The world size is not an input, so any number of processes reads the same global order; the memory is a permutation of
one window per lane that is read, and O(shards) for an epoch.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
NEAR = 8  # substitutes that are looked for in the same window, whose shards are at hand, before the whole pool
SHORT = 16  # chunks below this are looked up position by position
FAR = 2**63  # stream of the words for substitutes: no window has this number

_Value = TypeVar("_Value")


class _Recent:
    """The last few results of a pure function; filled once even when several threads ask at the same time."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, Lock()
        self._kept: OrderedDict[tuple[int, ...], object] = OrderedDict()

    def get(self, key: tuple[int, ...], make: Callable[[], _Value]) -> _Value:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Epoch:
    shards: Ints  # in this epoch's order
    places: Ints  # the inverse: where each shard stands in it
    begins: Ints  # where each shard begins in the epoch's sequence of samples, and the end
    lanes: Ints  # where each lane begins in that sequence, and the end


@dataclass(frozen=True, slots=True)
class _Window:
    number: int  # in its lane
    first: int  # shards [first, last) of the epoch's order
    last: int
    begin: int  # samples [begin, end) of the epoch's sequence
    end: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order of a pool of shards. Equal arguments give equal orders on every machine and numpy.

    `sizes`: samples per shard; `window`: shards of a lane whose samples are shuffled together; `lanes`: canonical
    nodes; `chunk`: consecutive positions of a lane; `stream`: tells orders of one seed apart.
    """

    sizes: Ints
    seed: int
    window: int
    lanes: int = 1
    chunk: int = 1
    stream: int = 0
    samples: int = field(init=False)  # per epoch
    _epochs: _Recent = field(init=False, repr=False)
    _windows: tuple[_Recent, ...] = field(init=False, repr=False)  # of each lane
    _held: dict[int, tuple[_Epoch, _Window]] = field(init=False, repr=False, default_factory=dict)  # last, of each lane

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes, np.int64)
        assert sizes.ndim == 1 and sizes.sum() > 0 and sizes.min() >= 0, "shard sizes must be counts"
        assert min(self.window, self.lanes, self.chunk) > 0, "window, lanes and chunk must be positive"
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "samples", int(sizes.sum()))
        object.__setattr__(self, "_epochs", _Recent(3))
        object.__setattr__(self, "_windows", tuple(_Recent(2) for _ in range(self.lanes)))

    def locate(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Shard and row of the positions start ... start + count - 1, each int64 [count]."""
        if self.lanes > 1 and self.chunk < SHORT:
            return self.at(np.arange(start, start + count, dtype=np.int64))
        shards, rows = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:  # a run of positions of one window
            position = start + done
            plan, lane, window, place = self._around(position)
            in_chunk = self.chunk - position % self.chunk if self.lanes > 1 else count
            in_epoch = self.samples - position % self.samples
            take = min(count - done, window.end - place, in_chunk, in_epoch)
            shuffled = self._shuffled(position // self.samples, lane, window)[place - window.begin :][:take]
            if take == count:
                return _samples(plan, window, shuffled)
            part = slice(done, done + take)
            shards[part], rows[part] = _samples(plan, window, shuffled)
            done += take
        return shards, rows

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Shard and row of any positions, each int64 [len(positions)]; cheapest when they lie close together."""
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        epochs, lanes = positions // self.samples, self.lane_of(positions)
        keys = epochs * self.lanes + lanes
        for key in np.unique(keys).tolist():
            chosen = np.flatnonzero(keys == key)
            epoch, lane = divmod(key, self.lanes)
            shards[chosen], rows[chosen] = self._in_lane(epoch, lane, positions[chosen])
        return shards, rows

    def lane_of(self, positions: Ints) -> Ints:
        """The lane of each position, int64 [len(positions)]."""
        return positions // self.chunk % self.lanes

    def find(self, epoch: int, shard: int, row: int) -> int:
        """The position at which that sample stands in that epoch: the inverse of `locate`."""
        plan = self._epoch(epoch)
        place = int(plan.begins[plan.places[shard]]) + row
        lane = int(np.searchsorted(plan.lanes, place, side="right")) - 1
        window = self._window_holding(plan, lane, place)
        shuffled = self._shuffled(epoch, lane, window)
        place = window.begin + int(np.flatnonzero(shuffled == place - window.begin)[0])
        return self._position(lane, self._before(epoch * self.samples, lane) + place - int(plan.lanes[lane]))

    def window_shards(self, position: int) -> Ints:
        """The shards of the window that holds `position`, each once, in the epoch's order."""
        plan, _, window, _ = self._around(position)
        return plan.shards[window.first : window.last]

    def next_window(self, position: int) -> int:
        """The first position of the same lane that lies behind the window of `position`."""
        _, lane, window, within = self._around(position)
        done = self._before(position, lane) + window.end - within
        return self._position(lane, done)

    def substitute(self, position: int, attempt: int) -> tuple[int, int]:
        """Shard and row of another sample for `position`; `attempt` counts from 1 to as many as are needed."""
        counter = np.array([0, attempt, position, FAR], np.uint64)
        word = int(np.random.Philox(counter=counter, key=self._key()).random_raw())
        if attempt > NEAR:
            place = word % self.samples
            shard = int(np.searchsorted(np.cumsum(self.sizes), place, side="right"))
            return shard, place - int(self.sizes[:shard].sum())
        plan, lane, window, place = self._around(position)
        count = window.end - window.begin
        other = (place - window.begin + 1 + word % max(count - 1, 1)) % count
        shuffled = self._shuffled(position // self.samples, lane, window)[other : other + 1]
        shards, rows = _samples(plan, window, shuffled)
        return int(shards[0]), int(rows[0])

    def _key(self) -> npt.NDArray[np.uint64]:
        return np.array([self.seed & (2**64 - 1), self.stream], np.uint64)

    def _before(self, position: int, lane: int) -> int:
        # how many of the positions 0 ... position - 1 the lane has
        rounds, rest = divmod(position, self.chunk * self.lanes)
        return rounds * self.chunk + min(max(rest - lane * self.chunk, 0), self.chunk)

    def _position(self, lane: int, number: int) -> int:
        # of the lane's sample `number`, counted from the run's start
        rounds, rest = divmod(number, self.chunk)
        return (rounds * self.lanes + lane) * self.chunk + rest

    def _epoch(self, epoch: int) -> _Epoch:
        def make() -> _Epoch:
            shards = _permutation(len(self.sizes), self._key(), (0, epoch, 0))
            begins = np.concatenate(([0], np.cumsum(self.sizes[shards])))
            start = epoch * self.samples
            held = [self._before(start + self.samples, lane) - self._before(start, lane) for lane in range(self.lanes)]
            places = np.empty_like(shards)
            places[shards] = np.arange(len(shards))
            return _Epoch(shards, places, begins, np.concatenate(([0], np.cumsum(held, dtype=np.int64))))

        return self._epochs.get((epoch,), make)

    def _around(self, position: int) -> tuple[_Epoch, int, _Window, int]:
        # the epoch's plan, the lane, the window that holds the position, and its place in the epoch's sequence
        epoch, lane = position // self.samples, position // self.chunk % self.lanes
        plan = self._epoch(epoch)
        done = self._before(position, lane) - self._before(epoch * self.samples, lane)
        place = int(plan.lanes[lane]) + done
        return plan, lane, self._window_holding(plan, lane, place), place

    def _window_holding(self, plan: _Epoch, lane: int, place: int) -> _Window:
        kept = self._held.get(lane)  # mostly the same as of the last call
        if kept is not None and kept[0] is plan and kept[1].begin <= place < kept[1].end:
            return kept[1]
        # a lane's first and last shard may be shared with its neighbours: each reads its own rows of them
        lane_begin, lane_end = int(plan.lanes[lane]), int(plan.lanes[lane + 1])
        shard = int(np.searchsorted(plan.begins, place, side="right")) - 1
        head = int(np.searchsorted(plan.begins, lane_begin, side="right")) - 1
        tail = int(np.searchsorted(plan.begins, lane_end, side="left"))
        number = (shard - head) // self.window
        first, last = head + number * self.window, min(head + (number + 1) * self.window, tail)
        begin, end = max(lane_begin, int(plan.begins[first])), min(lane_end, int(plan.begins[last]))
        window = _Window(number, first, last, begin, end)
        self._held[lane] = plan, window
        return window

    def _shuffled(self, epoch: int, lane: int, window: _Window) -> npt.NDArray[np.uint32]:
        where = (lane, epoch, window.number + 1)  # 0 is the permutation of the shards
        return self._windows[lane].get(
            where, lambda: _permutation(window.end - window.begin, self._key(), where).astype(np.uint32)
        )

    def _in_lane(self, epoch: int, lane: int, positions: Ints) -> tuple[Ints, Ints]:
        # positions of one lane and epoch
        plan = self._epoch(epoch)
        rounds, rest = positions // (self.chunk * self.lanes), positions % (self.chunk * self.lanes)
        numbers = rounds * self.chunk + rest - lane * self.chunk
        places = plan.lanes[lane] + numbers - self._before(epoch * self.samples, lane)
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        left = np.arange(len(places))
        while len(left):
            window = self._window_holding(plan, lane, int(places[left[0]]))
            held = (places[left] >= window.begin) & (places[left] < window.end)
            inside, left = left[held], left[~held]
            shuffled = self._shuffled(epoch, lane, window)[places[inside] - window.begin]
            shards[inside], rows[inside] = _samples(plan, window, shuffled)
        return shards, rows


def _samples(plan: _Epoch, window: _Window, shuffled: npt.NDArray[np.uint32]) -> tuple[Ints, Ints]:
    # shard and row of some of a window's samples, given by their place in it
    where = window.begin + shuffled.astype(np.int64)
    begins = plan.begins[window.first : window.last + 1]
    at = np.searchsorted(begins, where, side="right") - 1
    return plan.shards[window.first + at], where - begins[at]


def _permutation(count: int, key: npt.NDArray[np.uint64], stream: tuple[int, int, int]) -> Ints:
    # Sorting raw Philox words: numpy promises the bit stream across versions, but not Generator.permutation's use of
    # it. A tie among 64-bit words is broken by the stable sort.
    counter = np.array([0, *stream], np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)
