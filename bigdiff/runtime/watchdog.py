"""Notices a run that no longer moves, says which rank keeps the others, and ends it, so that it can be started again.

Two threads beside the training: one talks to the other ranks (bigdiff.runtime.rollcall) and may block for as long as
the store does; the other one has the clock and never waits for anybody. Whatever it does itself, writing to a hung
file system included, stands under the interpreter's own timer, a thread that needs no lock of Python's.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import torch.distributed as dist

from bigdiff.runtime.rollcall import Answers, Place, RollCall
from bigdiff.runtime.world import World, host

Phase = Literal[
    "setup",
    "data",
    "forward and backward",
    "agreement",
    "update",
    "log",
    "validation",
    "preview",
    "checkpoint",
    "rollback",
    "end",
]
BEAT: Final = 3.0  # seconds between two words of a rank to the store
FIRST: Final = 3  # the set-up and the first step, which may compile, have this many times the limit
MARGIN: Final = 60  # seconds by which a collective's own timeout lies behind the watchdog's, which says more
ENDING: Final = 30  # seconds that the end may take, with the stack's file on a file system that may hang, too
FAILED: Final = 1  # exit status


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank of the run in `folder` leaves its stacks."""
    return folder / "logs" / f"stack-rank-{rank:05d}.txt"


def collective_timeout(limit: int) -> int:
    """Seconds after which a collective gives up by itself, where the watchdog ends a run after `limit`."""
    return FIRST * limit + MARGIN


def lost_peer(error: BaseException | None) -> bool:
    """Whether a collective failed, so that another rank is at fault."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0].partition(". ")[0][:200] or type(error).__name__


class _Heart(threading.Thread):
    """Tells the others where this rank is, hears whether the roll was called, and calls it.

    Rank 0 also listens for ranks that fall silent, while it waits itself: a node's power may fail without a word, and
    not every backend notices.
    """

    def __init__(self, roll: RollCall, place: Callable[[], Place], beat: float, silence: float) -> None:
        super().__init__(name="heart", daemon=True)
        self._roll, self._place, self._beat, self._silence = roll, place, beat, silence
        self._heard: dict[int, tuple[Place, float]] = {}  # each rank's last word, and when it was new
        self._wanted = ""  # why the roll is to be called
        self._wake, self._over, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._answers: Answers | None = None
        self.called = ""  # why the run must end, as this or another rank found out
        self.round = time.monotonic()  # when the store last answered

    def run(self) -> None:
        """Until the store is gone, or the watchdog has its answers."""
        try:
            while not self._over.is_set():
                self._once()
                self.round = time.monotonic()
                self._wake.wait(self._beat)
        except dist.DistError:
            self.called = self.called or "the process of rank 0, which keeps the store, has ended"
        finally:
            self._ended.set()

    def _once(self) -> None:
        place = self._place()
        if self._wanted:
            self._roll.call(self._wanted)
            self._roll.answer(place)
            self._answers = self._roll.gather(2 * self._beat)
            self._over.set()
            return
        self._roll.tell(place)
        self.called = self._roll.called() or self.called
        if self.called:
            self._roll.answer(place)
        elif place.rank == 0 and place.seconds > self._silence:
            self.called = self._silent()

    def _silent(self) -> str:
        now = time.monotonic()
        for rank, place in self._roll.told().items():
            if rank not in self._heard or self._heard[rank][0] != place:
                self._heard[rank] = place, now
        quiet = [place.named for place, since in self._heard.values() if now - since > self._silence]
        return f"nothing was heard of {quiet[0]} for {self._silence:.0f} s" if quiet else ""

    def ask(self, reason: str) -> Answers | None:
        """Call the roll. None: the store does not answer."""
        self._wanted = reason
        self._wake.set()
        self._ended.wait(3 * self._beat + 2)
        return self._answers

    def stop(self) -> None:
        """End soon; a store that does not answer is not waited for."""
        self._over.set()
        self._wake.set()
        self.join(self._beat)


class Watchdog:
    """Ends this process, and with it the run, when it has not moved on for `limit` seconds, or another rank is lost.

    Used as a context. An exception that leaves it is told to the other ranks; when it is a failed collective, which
    another rank's end causes, it does not return: the process ends when it is clear who is at fault.
    """

    def __init__(self, world: World, folder: Path, limit: float, beat: float = BEAT) -> None:
        self._world, self._folder, self._limit = world, folder, limit
        self._silence = max(limit / 4, 4 * beat)
        self._beat, self._tick = beat, min(beat / 3, limit / 10)
        self._host, self._failed, self._lost, self._raised = host(), "", "", ""
        self._first: int | None = None
        self._at: tuple[int, Phase, int, float] = (0, "setup", 0, time.monotonic())
        self._over = threading.Event()
        self._heart: _Heart | None = None
        if world.beacon is not None:
            roll = RollCall(world.beacon, world.rank, world.size)
            self._heart = _Heart(roll, self.place, beat, self._silence)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, step: int, phase: Phase) -> None:
        """This rank begins a phase; every rank must say the same phases in the same order."""
        if self._first is None and phase != "setup":
            self._first = step
        self._at = (step, phase, self._at[2] + 1, time.monotonic())

    def place(self) -> Place:
        """Where this rank is."""
        step, phase, moves, since = self._at
        return Place(
            rank=self._world.rank,
            host=self._host,
            step=step,
            phase=phase,
            moves=moves,
            seconds=round(time.monotonic() - since, 1),
            failed=self._failed,
        )

    def __enter__(self) -> Self:
        self._arm()
        if self._heart is not None:
            self._heart.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if lost_peer(error) and self._heart is not None:
            # its frames are gone by now, but where it failed is what the stacks are read for
            self._raised = "".join(traceback.format_exception(kind, error, trace)) + "\n"
            self._lost = f"a collective failed ({_line(error)})"
            self._thread.join()
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._heart is not None:
            if error is not None:
                self._tell(self._heart, error)
            self._heart.stop()

    def _tell(self, heart: _Heart, error: BaseException) -> None:
        """Have the others end for this rank's error; rank 0, whose process keeps the store, waits for them."""
        self._failed = _line(error)
        place = self.place()
        answers = heart.ask(f"{place.named} failed at step {place.step} ({place.phase}): {place.failed}")
        if place.rank == 0 and answers is not None and any(not one.failed for one in answers.here.values()):
            time.sleep(self._beat + 2)

    def _watch(self) -> None:
        armed = time.monotonic()
        while not self._over.wait(self._tick):
            if time.monotonic() - armed > self._limit / 10:
                self._arm()
                armed = time.monotonic()
            reason = self._trouble()
            if reason:
                self._end(reason)

    def _arm(self) -> None:
        """End the process when the watching thread never gets its turn again, as in C that keeps Python's lock."""
        faulthandler.dump_traceback_later(self._allowance() + MARGIN, exit=True)

    def _allowance(self) -> float:
        return self._limit * (FIRST if self._first in (None, self._at[0]) else 1)

    def _trouble(self) -> str:
        """Why the run must end; "" while all is well."""
        place, heart = self.place(), self._heart
        if self._lost:
            return self._lost
        if place.seconds > self._allowance():
            return f"{place.named} has not moved on for {place.seconds:.0f} s"
        if heart is None:
            return ""
        if heart.called:
            self._over.wait(self._beat)  # this rank may be ending for the same reason, and says so itself
            return "" if self._over.is_set() else heart.called
        deaf = time.monotonic() - heart.round > self._silence
        return f"rank 0 has not answered for {self._silence:.0f} s" if deaf and place.seconds > self._silence else ""

    def _end(self, reason: str) -> None:
        """Leave the stacks, find out who is at fault, say it once, and end this process."""
        faulthandler.dump_traceback_later(ENDING, exit=True)
        self._dump(reason)
        answers = self._heart.ask(reason) if self._heart is not None else Answers.alone(self.place())
        if answers is None or answers.speaks:
            self._say(reason, answers)
        time.sleep(1)  # the others still read the store, which may end with this process
        os._exit(FAILED)

    def _say(self, reason: str, answers: Answers | None) -> None:
        if answers is not None:
            blame = answers.blame
            sentence = blame if blame == reason else f"{blame}: {reason}"
        elif self._heart is not None and self._heart.called:
            sentence = self._heart.called
        else:
            sentence = f"rank 0 does not answer (killed, stopped or cut off): {reason}"
        where = stack_file(self._folder, self._world.rank).parent
        sys.stderr.write(f"failed: {sentence}; the stacks of all ranks are in {where}; start again to go on\n")
        sys.stderr.flush()

    def _dump(self, reason: str) -> None:
        file = stack_file(self._folder, self._world.rank)
        place = self.place()
        head = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {place.named}, process {os.getpid()}\nstep {place.step}, "
        head += f"{place.phase}, for {place.seconds:.0f} s\n{reason}\n\n{self._raised}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w") as stream:
                stream.write(head)
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
        except OSError as error:
            sys.stderr.write(f"warning: cannot write {file} ({error.strerror}); the stacks follow\n{head}")
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
