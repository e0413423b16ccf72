"""Where the ranks of a run are, told through the process group's store, so that a hang can be laid at somebody's door.

Each rank sets one small key now and then; all keys are read only when somebody calls the roll. No rank's clock is
compared with another's: the rank that has moved on least often is behind, since all make the same moves.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final

from torch.distributed import Store  # type: ignore[attr-defined]

NAMED: Final = 8  # ranks that a sentence names; the rest are counted
POLL: Final = 0.2  # seconds between two looks at the roll

_CALLED: Final = "called"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a rank is."""

    rank: int
    host: str
    step: int
    phase: str
    moves: int  # how often it has moved on
    seconds: float  # since it last did
    failed: str = ""  # the error that ended it

    @property
    def named(self) -> str:
        """For a sentence."""
        return f"rank {self.rank} ({self.host})"


class RollCall:
    """One rank's access to the store, which no other thread may use: a call blocks while another one does.

    Its methods raise torch.distributed.DistError when the store's host, rank 0's process, has ended; while that process
    is stopped they do not return, whatever the store's timeout.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def tell(self, place: Place) -> None:
        """Set this rank's key."""
        self._store.set(f"place/{place.rank}", json.dumps(asdict(place)))

    def told(self) -> dict[int, Place]:
        """The last word of each rank that ever told."""
        return self._read("place")

    def called(self) -> str:
        """Why the roll was called; "" when it was not."""
        return self._store.get(_CALLED).decode() if self._store.check([_CALLED]) else ""

    def call(self, reason: str) -> None:
        """Have every rank answer."""
        self._store.set(_CALLED, reason)

    def answer(self, place: Place) -> None:
        """Answer the roll."""
        self._store.set(f"here/{place.rank}", json.dumps(asdict(place)))

    def gather(self, seconds: float) -> "Answers":
        """All answers that come within `seconds`; sooner when nobody is missing, or a lower rank speaks for all.

        The lowest rank that has answered and goes on speaks; the others read no more than they need to know that.
        """
        until = time.monotonic() + seconds
        everyone = [f"here/{rank}" for rank in range(self._size)]
        while time.monotonic() < until and not self._store.check(everyone) and not (self._rank and self._lives(0)):
            time.sleep(POLL)
        speaks = not any(self._lives(rank) for rank in range(self._rank))
        here, told = (self._read("here"), self.told()) if speaks else ({}, {})
        return Answers(here=here, told=told, size=self._size, speaks=speaks)

    def _lives(self, rank: int) -> bool:
        return self._store.check([f"here/{rank}"]) and not _place(self._store.get(f"here/{rank}")).failed

    def _read(self, kind: str) -> dict[int, Place]:
        keys = [f"{kind}/{rank}" for rank in range(self._size)]
        if not self._store.check(keys):
            keys = [key for key in keys if self._store.check([key])]
        return {place.rank: place for place in map(_place, self._store.multi_get(keys))} if keys else {}


def _place(content: bytes) -> Place:
    return Place(**json.loads(content))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the roll brought."""

    here: dict[int, Place]  # who answered; empty where another rank speaks
    told: dict[int, Place]  # what each rank last told of itself
    size: int
    speaks: bool  # whether this rank does, for all

    @classmethod
    def alone(cls, place: Place) -> "Answers":
        """Of the only rank there is."""
        return cls(here={place.rank: place}, told={}, size=1, speaks=True)

    @property
    def blame(self) -> str:
        """One sentence on who keeps the others: who failed, who does not answer, who is behind."""
        failed = [place for place in self.here.values() if place.failed]
        silent = [self.told.get(rank) or _unheard(rank) for rank in sorted(set(range(self.size)) - set(self.here))]
        if failed:
            return _each(failed, lambda one: f"failed at step {one.step} ({one.phase}): {one.failed}")
        if silent:
            return _each(
                silent, lambda one: f"does not answer (killed, stopped or cut off), last heard of {_where(one)}"
            )
        least = min(place.moves for place in self.here.values())
        behind = [place for place in self.here.values() if place.moves == least]
        ahead = [place for place in self.here.values() if place.moves > least]
        if not ahead:
            who = f"all {self.size} ranks hang" if self.size > 1 else f"{behind[0].named} hangs"
            return f"{who} {_where(behind[0])} for {behind[0].seconds:.0f} s"
        others = max(ahead, key=lambda place: place.moves)
        hang = _each(behind, lambda one: f"hangs {_where(one)}")
        return f"{hang} for {behind[0].seconds:.0f} s while others wait {_where(others)}"


def _where(place: Place) -> str:
    return f"in {place.phase} of step {place.step}" if place.phase else "never"


def _unheard(rank: int) -> Place:
    return Place(rank=rank, host="host unknown", step=0, phase="", moves=0, seconds=0.0)


def _each(places: Iterable[Place], said: Callable[[Place], str]) -> str:
    """Those of whom the same is said are named together, up to NAMED of them."""
    parts, named, left = [], 0, 0
    for sentence, group in groupby(sorted(places, key=lambda one: (said(one), one.rank)), key=said):
        ranks = [place.named for place in group]
        shown = ranks[: max(NAMED - named, 0)]
        named, left = named + len(shown), left + len(ranks) - len(shown)
        if shown:
            parts.append(f"{', '.join(shown)} {sentence}")
    return "; ".join(parts) + (f"; and {left} more ranks" if left else "")
