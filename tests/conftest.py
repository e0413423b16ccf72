"""Fixtures that many tests share: real processes that form a real gloo group."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# before torch is imported anywhere: two processes with one thread each are the steadiest on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]

Ranks = Callable[..., list[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(script: str, size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(size)
    ]


@pytest.fixture
def run_ranks() -> Ranks:
    """Run a Python script as `size` ranks of one gloo group; gives each rank's standard output."""

    def run(script: str, size: int, *arguments: str, timeout: float = 300) -> list[str]:
        processes = start_ranks(script, size, *arguments)
        try:
            results = [process.communicate(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        for process, (_, errors) in zip(processes, results, strict=True):
            assert process.returncode == 0, errors[-4000:]
        return [output for output, _ in results]

    return run
