"""Ranks that are forked from one process which has imported all there is: a start costs a second instead of ten.

Each is a process of its own with a real gloo group, DeepSpeed engine, data stream and checkpoints.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from forking import Forker, alive

TRAIN_ALL = """
import json, sys
from pathlib import Path
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup
world = enter(60)
for options in json.loads(sys.argv[1]):
    try:
        stage = load_stage(options[0], options[1:])
        with setup.building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 60)) as run:
            loop.train(run)
    except UsageError as error:
        print("refused", stage.name, error)
"""
TRAIN_TOY = """
import sys
from bigdiff.config.errors import RunError
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
_, stage, before, *arguments = sys.argv
exec(before, {})
try:
    outcome = train_stage(load_stage(stage, arguments))
except RunError as error:
    print("failed:", error, flush=True)
    sys.exit(1)
print("finished" if outcome.finished else "stopped", outcome.step, flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one start."""

    pids: list[int]
    logs: list[Path]
    forker: Forker

    def alive(self) -> list[int]:
        """Those that have not ended."""
        return [pid for pid in self.pids if alive(pid)]

    def ended(self, seconds: float = 300) -> bool:
        """Whether all end within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def texts(self) -> list[str]:
        """What each wrote."""
        return [log.read_text() if log.exists() else "" for log in self.logs]

    def wait(self) -> list[str]:
        """What each wrote, when all have ended by themselves."""
        assert self.ended(), [text[-3000:] for text in self.texts()]
        return self.texts()

    def codes(self) -> list[int]:
        """The exit codes, when all have ended; their numbers may be given away again, and are forgotten."""
        found = [self.forker.wait(pid) for pid in self.pids]
        self.pids.clear()
        return found

    def step(self) -> int:
        """The last step that rank 0 told of."""
        told = re.findall(r"^step +(\d+)/", self.texts()[0], re.M)
        return int(told[-1]) if told else 0


@pytest.fixture
def start(engine_forker: Forker, toy: Path, tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start ranks of the toy stage, with runs in `tmp_path`; each does `before` first."""
    started: list[Ranks] = []

    def begin(size: int, *arguments: str, before: str = "") -> Ranks:
        logs = [tmp_path / f"log-{len(started):02d}-{rank}" for rank in range(size)]
        words = [str(toy / "stage.yaml"), before, f"runs={tmp_path}", *arguments]
        pids = engine_forker.start(TRAIN_TOY, words, [(log, log) for log in logs])
        started.append(Ranks(pids=pids, logs=logs, forker=engine_forker))
        return started[-1]

    yield begin
    for ranks in started:
        for pid in ranks.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def train_all(run_ranks: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Train stages one after another and give the lines of those that were refused.

    Each job is a stage's file and its settings. All run in one process (of each rank): DeepSpeed takes far longer to
    come than the steps.
    """

    def run(jobs: list[list[str]], size: int = 1) -> list[str]:
        output, *_ = run_ranks(TRAIN_ALL, size, json.dumps(jobs))
        return [line for line in output.splitlines() if line.startswith("refused")]

    return run
