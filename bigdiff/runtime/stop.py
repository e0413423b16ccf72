"""A request to stop (preemption, time limit, Ctrl-C) that all processes act on in the same step."""

import signal
from types import FrameType

from bigdiff.runtime.world import World

# submitit warns with USR2 before a time limit and on preemption; USR1 and TERM come from other schedulers
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stop:
    """Remembers that a signal came; the loop asks `agreed` at each step's end."""

    def __init__(self) -> None:
        self.requested = ""  # the signal's name

    def listen(self) -> None:
        """Take over the stop signals of this process; must run in its main thread."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # a second Ctrl-C means it: the default action follows
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def agreed(self, world: World) -> bool:
        """Whether any process was asked to stop: the same answer everywhere, so that the save is collective."""
        return world.anywhere(bool(self.requested))
