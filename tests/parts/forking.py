"""Ranks of a script, forked from one process that has imported torch and DeepSpeed: a start costs no 7 s of a core.

Each is a process of its own, with its own gloo group, and otherwise what `python -c` makes of the script. Ranks of one
test have the same order of sets, though, which those of a SLURM job or of `start_ranks` have not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
ENGINE = """
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.runtime.zero.muon import muon_optimizer  # each engine would import it, and torch's compiler with it
from bigdiff.train import loop, setup
ShareMemCommBuilder().load(verbose=False)
"""
SERVER = """
import gc, json, os, sys, traceback, types

def script(job):
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["-c", *job["arguments"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(job["script"], "<string>", "exec"), main.__dict__)

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
        except SystemExit as leaving:
            status = leaving.code or 0
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

    def __init__(self, before: str = ENGINE) -> None:
        """`before`: what it imports."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", before + SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
        )
        while self._line() != "ready":  # DeepSpeed prints that its operation is built
            pass

    def start(self, script: str, arguments: Sequence[str], files: Sequence[tuple[Path, Path]]) -> list[int]:
        """Start it as ranks of one gloo group, one for each pair of files, which take its output and its errors."""
        port = str(free_ports(1)[0])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(files))}
        pids = []
        for rank, (out, err) in enumerate(files):
            environment = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            job = {"script": script, "arguments": arguments, "out": str(out), "err": str(err)}
            pids.append(self._ask({**job, "environment": environment}))
        return pids

    def wait(self, pid: int) -> int:
        """The exit code of one that has ended, or will; its number may be given away again then."""
        return self._ask({"wait": pid})

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _ask(self, job: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the forking process has ended"
        return line.strip()


def pairs(folder: Path, number: int, size: int) -> list[tuple[Path, Path]]:
    """Files for the output and the errors of each of `size` ranks of start `number`."""
    return [(folder / f"{number}-{rank}.out", folder / f"{number}-{rank}.err") for rank in range(size)]


def alive(pid: int) -> bool:
    """Whether a child of a Forker, which is not reaped yet, still runs."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="session")
def engine_forker() -> Iterator[Forker]:
    """With DeepSpeed and the trainer imported."""
    found = Forker()
    yield found
    found.close()


@pytest.fixture(scope="session")
def run_ranks(engine_forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Run a Python script as `size` ranks of one gloo group; gives each rank's standard output.

    Of ranks that are to end with another exit status than 0 it gives the standard error.
    """
    folder, numbers = tmp_path_factory.mktemp("ranks"), count()

    def run(script: str, size: int, *arguments: str, status: int = 0, timeout: float = 300) -> list[str]:
        files = pairs(folder, next(numbers), size)
        pids = engine_forker.start(script, arguments, files)
        try:
            deadline = time.monotonic() + timeout
            while any(alive(pid) for pid in pids):
                assert time.monotonic() < deadline, [err.read_text()[-2000:] for _, err in files if err.exists()]
                time.sleep(0.02)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # and what it has left
            codes = [engine_forker.wait(pid) for pid in pids]
        for code, (_, err) in zip(codes, files, strict=True):
            assert code == status, err.read_text()[-4000:]
        return [(err if status else out).read_text() for out, err in files]

    return run
