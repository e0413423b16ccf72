"""All tests, in two processes beside each other: `python tests/parts/halves.py`, which `make test` runs.

Jobs and runs of several processes mostly wait, for SLURM or for one another; the rest mostly computes, in one process.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
APART = ("tests/cluster", "tests/e2e")
PYTEST = (sys.executable, "-m", "pytest", "-m", "not bench")
HALVES = {" and ".join(APART): APART, "all others": tuple(f"--ignore={folder}" for folder in APART)}
RULE = b"====="  # pytest draws one above its header, and one above each part of its report
GRACE = 120.0  # seconds for the fixtures of an interrupted test to end what they started


@dataclass(kw_only=True)
class Half:
    """One pytest and what it has written that is not passed on yet."""

    name: str
    process: subprocess.Popen[bytes]
    line: bytes = b""
    rules: int = 0
    report: list[bytes] = field(default_factory=list)
    ended: bool = False

    @property
    def pipe(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def passed_on(self, ready: bool) -> bytes:
        """What can be passed on now: whole lines, and the report at the end, in one piece."""
        output = os.read(self.pipe, 1 << 16) if ready else b""
        if output:
            return self._lines(output)
        # what outlives a pytest may hold its pipe open: its end is then that nothing comes
        self.ended = ready or self.process.poll() is not None
        return b"".join([*self.report, self.line + b"\n" if self.line else b""]) if self.ended else b""

    def _lines(self, output: bytes) -> bytes:
        *lines, self.line = (self.line + output).split(b"\n")
        now: list[bytes] = []
        for line in lines:
            self.rules += line.startswith(RULE)
            (now if self.rules < 2 else self.report).append(line + b"\n")
        return b"".join(now)


def start(name: str, command: Sequence[str]) -> Half:
    # in a session of its own: Ctrl-C comes once, from here, and not a second time in the middle of a teardown
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Half(name=name, process=process)


def run(commands: dict[str, Sequence[str]]) -> int:
    """Run the named commands beside each other; 0 when all of them ended with 0, otherwise the first other status.

    SIGINT, SIGTERM and SIGHUP are passed on to each as SIGINT, upon which pytest runs its teardowns.
    """
    began, told = time.monotonic(), [0.0]
    halves: list[Half] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told[0] = told[0] or time.monotonic()
        for half in halves:
            half.process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    for name, command in commands.items():
        if not told[0]:
            halves.append(start(name, command))
    while going := [half for half in halves if not half.ended]:
        ready, _, _ = select.select([half.pipe for half in going], [], [], 1.0)
        for half in going:
            write(half.passed_on(half.pipe in ready))
            if half.ended:
                write(f"\n{half.name}: exit status {half.process.wait()}, {time.monotonic() - began:.0f} s\n".encode())
        if told[0] and time.monotonic() > told[0] + GRACE:
            kill(going)
    return next((code for half in halves if (code := half.process.returncode)), 1 if told[0] else 0)


def kill(halves: list[Half]) -> None:
    for half in halves:
        with suppress(ProcessLookupError):
            os.killpg(half.process.pid, signal.SIGKILL)


def write(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(run({name: [*PYTEST, *words] for name, words in HALVES.items()}))
