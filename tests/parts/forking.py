"""Ranks of a script, forked from one process that has imported torch and DeepSpeed: a start costs no 7 s of a core.

Each is a process of its own, with its own gloo group, and otherwise what `python -c` makes of the script. Ranks of one
test have the same order of sets, though, which those of a SLURM job or of `start_ranks` have not.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORKER = """
import gc, json, os, sys, traceback, types
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.runtime.zero.muon import muon_optimizer  # each engine would import it, and torch's compiler with it
from bigdiff.train import loop, setup

def script(job):
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["-c", *job["arguments"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(job["script"], "<string>", "exec"), main.__dict__)

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
            os.setsid()
            script(job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
"""


class Forker:
    """The process that forks; it reaps a child only when asked, so that no number is given away again before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
        )
        while self._line() != "ready":  # DeepSpeed prints that its operation is built
            pass

    def run(self, script: str, size: int, arguments: tuple[str, ...], status: int, timeout: float) -> list[str]:
        """Run it as `size` ranks of one gloo group; gives what each wrote."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(size)}
        self.count += 1
        files = [[self.folder / f"{self.count}-{rank}.{end}" for end in ("out", "err")] for rank in range(size)]
        pids: list[int] = []
        for rank, (out, err) in enumerate(files):
            environment = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            job = {"script": script, "arguments": arguments, "out": str(out), "err": str(err)}
            pids.append(self._ask({**job, "environment": environment}))
        try:
            deadline = time.monotonic() + timeout
            while any(_alive(pid) for pid in pids):
                assert time.monotonic() < deadline, [err.read_text()[-2000:] for _, err in files if err.exists()]
                time.sleep(0.02)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # and what it has left
            codes = [self._ask({"wait": pid}) for pid in pids]
        for code, (_, err) in zip(codes, files, strict=True):
            assert code == status, err.read_text()[-4000:]
        return [(err if status else out).read_text() for out, err in files]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _ask(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the forking process has ended"
        return line.strip()


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[str]]]:
    """Run a Python script as `size` ranks of one gloo group; gives each rank's standard output.

    Of ranks that are to end with another exit status than 0 it gives the standard error.
    """
    forker = Forker(tmp_path_factory.mktemp("ranks"))

    def run(script: str, size: int, *arguments: str, status: int = 0, timeout: float = 300) -> list[str]:
        return forker.run(script, size, arguments, status, timeout)

    yield run
    forker.close()
