"""Ranks that are forked from one process which has imported torch once: a start costs a tenth of a second."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import pytest
from forking import alive

TOY = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import toy_run\n"


@dataclass(frozen=True, kw_only=True)
class Rank:
    pid: int
    out: Path
    err: Path
    forker: forking.Forker

    def told(self) -> list[dict[str, Any]]:
        """Its whole lines so far."""
        text = self.out.read_text() if self.out.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def alive(self) -> bool:
        return alive(self.pid)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 60) -> int:
        """Its exit code; the process must end by itself."""
        deadline = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < deadline, f"still runs: {self.err.read_text()[-2000:]}"
            time.sleep(0.005)
        return self.forker.wait(self.pid)


class Forker:
    """Starts scripts of the toy run."""

    def __init__(self, process: forking.Forker, folder: Path) -> None:
        self._process, self._folder, self._count = process, folder, 0

    def start(self, script: str, size: int, *arguments: object) -> list[Rank]:
        """Start a script, after `from toy_run import *`, as `size` ranks of one gloo group."""
        files, self._count = forking.pairs(self._folder, self._count, size), self._count + 1
        pids = self._process.start("from toy_run import *\n" + script, [str(one) for one in arguments], files)
        return [
            Rank(pid=pid, out=out, err=err, forker=self._process) for pid, (out, err) in zip(pids, files, strict=True)
        ]

    def run(self, script: str, size: int, *arguments: object) -> list[list[dict[str, Any]]]:
        """Run it to its end; gives each rank's lines."""
        ranks = self.start(script, size, *arguments)
        codes = [rank.ended() for rank in ranks]
        assert codes == [0] * size, "\n".join(rank.err.read_text()[-3000:] for rank in ranks)
        return [rank.told() for rank in ranks]


@contextmanager
def started(folder: Path, before: str = "") -> Iterator[Forker]:
    """A forking process that has imported the toy run, and done `before`."""
    process = forking.Forker(TOY + before)
    try:
        yield Forker(process, folder)
    finally:
        process.close()


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with started(tmp_path_factory.mktemp("toys")) as found:
        yield found


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """As `forker`, with the engine imported and DeepSpeed's CPU collective loaded."""
    with started(tmp_path_factory.mktemp("engines"), forking.ENGINE) as found:
        yield found
