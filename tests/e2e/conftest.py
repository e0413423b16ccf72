"""Ranks that are forked from one process which has imported all there is: a start costs a second instead of ten.

Each is a process of its own with a real gloo group, DeepSpeed engine, data stream and checkpoints.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
FORKER = """
import gc, json, os, sys, traceback
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.runtime.zero.muon import muon_optimizer  # each engine would import it, and torch's compiler with it
from bigdiff.config.errors import RunError
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage

def rank(job):
    os.environ.update(job["environment"])
    os.dup2(os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
    os.dup2(1, 2)
    exec(job["before"], {})
    outcome = train_stage(load_stage(job["stage"], job["arguments"]))
    print("finished" if outcome.finished else "stopped", outcome.step, flush=True)

ShareMemCommBuilder().load(verbose=False)
gc.collect()
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        status = 1
        try:
            rank(job)
            status = 0
        except RunError as error:
            print("failed:", error, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
"""


class Forker:
    """The process that forks ranks; it reaps one only when asked, so that no number is given away again before."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
        )
        line = self._line()
        while line != "ready":  # DeepSpeed prints that its operation is built
            line = self._line()

    def ask(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the forking process has ended"
        return line


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one start."""

    pids: list[int]
    logs: list[Path]
    forker: Forker

    def alive(self) -> list[int]:
        """Those that have not ended."""
        return [pid for pid in self.pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]

    def ended(self, seconds: float = 120) -> bool:
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
        found = [self.forker.ask({"wait": pid}) for pid in self.pids]
        self.pids.clear()
        return found

    def step(self) -> int:
        """The last step that rank 0 told of."""
        told = re.findall(r"^step +(\d+)/", self.texts()[0], re.M)
        return int(told[-1]) if told else 0


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    found = Forker()
    yield found
    found.close()


@pytest.fixture
def start(forker: Forker, free_port: Callable[[], int], toy: Path, tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start ranks of the toy stage, with runs in `tmp_path`; each does `before` first."""
    started: list[Ranks] = []

    def begin(size: int, *arguments: str, before: str = "") -> Ranks:
        port, number, pids = str(free_port()), len(started), []
        logs = [tmp_path / f"log-{number:02d}-{rank}" for rank in range(size)]
        for rank, log in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            job = {
                "environment": {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                "log": str(log),
                "before": before,
                "stage": str(toy / "stage.yaml"),
                "arguments": [f"runs={tmp_path}", *arguments],
            }
            pids.append(forker.ask(job))
        started.append(Ranks(pids=pids, logs=logs, forker=forker))
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
