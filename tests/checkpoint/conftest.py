"""Ranks that are forked from one process which has imported torch once: a start costs a tenth of a second."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FORKER = """
import gc, json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
exec(sys.argv[2])

def rank(job):
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
    sys.argv = ["rank", *job["arguments"]]
    exec(compile("from toy_run import *\\n" + job["script"], "rank", "exec"), {"__name__": "rank"})

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
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
"""

ENGINE = """
import toy_run, bigdiff.engine.deepspeed
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
ShareMemCommBuilder().load(verbose=False)
"""


@dataclass(frozen=True, kw_only=True)
class Rank:
    pid: int
    out: Path
    err: Path
    forker: "Forker"

    def told(self) -> list[dict[str, Any]]:
        """Its whole lines so far."""
        text = self.out.read_text() if self.out.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 60) -> int:
        """Its exit code; the process must end by itself."""
        deadline = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < deadline, f"still runs: {self.err.read_text()[-2000:]}"
            time.sleep(0.005)
        return int(self.forker.ask({"wait": self.pid}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Forker:
    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process, self.folder, self.count = process, folder, 0
        assert self._line() == "ready"

    def ask(self, job: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the forking process has ended"
        return line

    def start(self, script: str, size: int, *arguments: object) -> list[Rank]:
        """Start a script, after `from toy_run import *`, as `size` ranks of one gloo group."""
        port, ranks, self.count = free_port(), [], self.count + 1
        for rank in range(size):
            values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            out, err = (self.folder / f"{self.count}-{rank}.{end}" for end in ("out", "err"))
            job = {
                "script": script,
                "arguments": [str(one) for one in arguments],
                "environment": {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}},
                "out": str(out),
                "err": str(err),
            }
            ranks.append(Rank(pid=int(self.ask(job)), out=out, err=err, forker=self))
        return ranks

    def run(self, script: str, size: int, *arguments: object) -> list[list[dict[str, Any]]]:
        """Run it to its end; gives each rank's lines."""
        ranks = self.start(script, size, *arguments)
        codes = [rank.ended() for rank in ranks]
        assert codes == [0] * size, "\n".join(rank.err.read_text()[-3000:] for rank in ranks)
        return [rank.told() for rank in ranks]


@contextmanager
def forking(folder: Path, before: str = "import toy_run") -> Iterator[Forker]:
    """A forking process that has done `before`."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER, str(Path(__file__).parent), before],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Forker(process, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with forking(tmp_path_factory.mktemp("ranks")) as found:
        yield found


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """As `forker`, with the engine imported and DeepSpeed's CPU collective loaded."""
    with forking(tmp_path_factory.mktemp("engines"), ENGINE) as found:
        yield found
