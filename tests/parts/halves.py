"""All tests, in two processes beside each other: `python tests/parts/halves.py`, which `make test` runs.

Jobs and runs of several ranks mostly wait, for SLURM or for one another; the rest mostly computes, in one process. The
two took about as long as each other when this was written.

Jobs of SLURM have times to keep, and two cores have much to do for both processes. So a few tests that fail beside the
other half run once more alone, and that decides; the first failure stays in the output, and its name at the end.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (sys.executable, "-m", "pytest", "-m", "not bench")
# whole runs, too, but of one rank or of none
ALONE = {
    f"tests/e2e/test_{name}.py"
    for name in (
        "build_shards",
        "diffusers_step",
        "frozen_and_text",
        "kohya_step",
        "latent_forms",
        "pictures",
        "spark",
        "stream_kills",
        "stream_memory",
        "whole_pictures",
    )
}
RULE = b"====="  # pytest draws one above its header, and one above each part of its report
FAILED = 1  # pytest's status; others are of interruptions, of itself, of its use
MOST = 5  # tests that fail by chance: more have a reason
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

    def failures(self) -> bytes:
        """Which of its tests failed, and why, as pytest's summary has it: at most the last 8,000 bytes of that."""
        if not self.process.wait():
            return b""
        _, _, after = b"".join(self.report).rpartition(b" short test summary info ")
        summary = takewhile(lambda line: not line.startswith(b"="), after.splitlines(True)[1:])
        failed = b"".join(line for line in summary if not line.startswith(b"SKIPPED"))
        return f"\n{self.name}, once more:\n".encode() + (failed or b"".join(self.report[-20:]))[-8000:]

    def _lines(self, output: bytes) -> bytes:
        *lines, self.line = (self.line + output).split(b"\n")
        now: list[bytes] = []
        for line in lines:
            self.rules += line.startswith(RULE)
            (now if self.rules < 2 else self.report).append(line + b"\n")
        return b"".join(now)


def halves() -> dict[str, list[str]]:
    """What pytest is told of each half: the files of the one, and to leave those out."""
    files = {
        str(file.relative_to(ROOT)) for part in ("cluster", "e2e") for file in ROOT.glob(f"tests/{part}/test_*.py")
    }
    jobs = sorted(files - ALONE)
    return {"jobs and ranks": jobs, "all other tests": [f"--ignore={file}" for file in jobs]}


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


def decided(commands: dict[str, Sequence[str]], caches: Path) -> int:
    """Run the named pytests beside each other, and what failed of each then alone; the first status that is not 0.

    Their caches are in folders of `caches`, by number.
    """
    kept = {
        name: [*command, "-o", f"cache_dir={caches / str(number)}"]
        for number, (name, command) in enumerate(commands.items())
    }
    statuses = run({name: [*command, "--cache-clear"] for name, command in kept.items()})
    for number, (name, command) in enumerate(kept.items()):
        failed = caches / str(number) / "v/cache/lastfailed"
        if statuses.get(name) == FAILED and len(tests := json.loads(failed.read_text())) <= MOST:
            write(f"\n{name}: what failed, once more, alone\n".encode())
            statuses |= run({name: [*command, "--last-failed"]})
            if statuses[name] == 0:
                write("".join(f"passed alone, failed beside others: {test}\n" for test in tests).encode())
    return next((status for status in statuses.values() if status), 0 if len(statuses) == len(kept) else 1)


def run(commands: dict[str, Sequence[str]]) -> dict[str, int]:
    """Run the named commands beside each other; gives the exit status of each that was started.

    SIGINT, SIGTERM and SIGHUP are passed on to each as SIGINT, upon which pytest runs its teardowns.
    """
    began, told = time.monotonic(), [0.0]
    running: list[Half] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told[0] = told[0] or time.monotonic()
        for half in running:
            half.process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        for name, command in commands.items():
            if not told[0]:
                running.append(start(name, command))
        while going := [half for half in running if not half.ended]:
            ready, _, _ = select.select([half.pipe for half in going], [], [], 1.0)
            for half in going:
                write(half.passed_on(half.pipe in ready))
                if half.ended:
                    write(
                        f"\n{half.name}: exit status {half.process.wait()}, {time.monotonic() - began:.0f} s\n".encode()
                    )
            if told[0] and time.monotonic() > told[0] + GRACE:
                kill(going)
        # a machine that keeps but the end of the output shall have them
        write(b"".join(half.failures() for half in running))
    finally:  # the output is closed, say
        interrupt(0, None)
    return {half.name: half.process.wait() for half in running}


def kill(running: list[Half]) -> None:
    for half in running:
        with suppress(ProcessLookupError):
            os.killpg(half.process.pid, signal.SIGKILL)


def write(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(decided({name: [*PYTEST, *words] for name, words in halves().items()}, ROOT / ".pytest_cache"))
