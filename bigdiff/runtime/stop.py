"""A request to stop (preemption, time limit, Ctrl-C) that all processes act on in the same step."""

import signal
from types import FrameType

# submitit warns with USR2 before a time limit and on preemption; USR1 and TERM come from other schedulers
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stop:
    """Remembers that a signal came; at each step's end all processes agree on it (World.ask)."""

    def __init__(self) -> None:
        self.requested = ""  # the signal's name
        self._interrupted = self._heeded = False

    def listen(self) -> None:
        """Take over the stop signals of this process; must run in its main thread."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def heed(self) -> None:
        """From now on the run saves and ends: no further signal, a second Ctrl-C neither, keeps it from that."""
        self._heeded = True

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # a second Ctrl-C means it: the default action follows
        if self._interrupted and number == signal.SIGINT and not self._heeded:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.requested = self.requested or signal.Signals(number).name
