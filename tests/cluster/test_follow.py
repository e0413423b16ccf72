"""Real local jobs of two processes that do something trivial: submitted by submitit, followed to their end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster.follow import Patience, Tail, follow
from bigdiff.cluster.machine import Machine, fit
from bigdiff.cluster.submit import start
from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.config.load import load_cluster

ROOT = Path(__file__).resolve().parents[2]
HERE = Machine(cores=2)
TWO = fit(load_cluster("local"), HERE)
HASTY = Patience(peers=1.0)


def run(folder: Path, function: Callable[[], Any]) -> tuple[list[Any], list[str]]:
    lines: list[str] = []
    return follow(start(function, folder, TWO, HERE), lines.append, HASTY), lines


def test_lines_of_process_0_come_and_every_result_is_returned(tmp_path: Path) -> None:
    def work() -> int:
        import os
        import sys

        rank = int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
        for number in range(3):
            print(f"line {number} of {rank}")
        sys.stderr.write("10%\r20%\r30%\n")
        return rank * 10

    results, lines = run(tmp_path, work)
    assert results == [0, 10]
    assert lines == ["line 0 of 0", "line 1 of 0", "line 2 of 0", "30%"]


def test_two_processes_find_each_other_through_the_jobs_port(tmp_path: Path) -> None:
    from bigdiff.cluster.rendezvous import free_port

    port = free_port()

    def meet() -> str:
        import os
        import socket
        import time

        from bigdiff.cluster.rendezvous import export, find

        place = find(os.environ, port, str)
        export(place)
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if place.rank == 0:
            with socket.create_server(address) as server:
                peer, _ = server.accept()
                return peer.recv(100).decode()
        for _ in range(100):
            try:
                with socket.create_connection(address) as peer:
                    peer.sendall(f"hello from {os.environ['RANK']} of {os.environ['WORLD_SIZE']}".encode())
                    return "sent"
            except ConnectionRefusedError:
                time.sleep(0.1)
        raise TimeoutError

    assert run(tmp_path, meet)[0] == ["hello from 1 of 2", "sent"]


@pytest.mark.parametrize("kind", [UsageError, RunError, LastingError])
def test_a_sentence_of_a_process_stays_a_sentence(tmp_path: Path, kind: type[Exception]) -> None:
    name = kind.__name__

    def refuse() -> None:
        from bigdiff.config import errors

        raise getattr(errors, name)("the latent set does not fit: factor is 8, 4 is needed")

    with pytest.raises(kind, match=r"^the latent set does not fit: factor is 8, 4 is needed$") as caught:
        run(tmp_path, refuse)
    assert caught.type is kind


def test_an_exception_ends_the_waiting_peer_and_is_reported_with_the_log(tmp_path: Path) -> None:
    def fail() -> None:
        import os
        import time

        if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "0":
            time.sleep(600)  # as in a collective that its peer never joins
        raise ZeroDivisionError("the cause")

    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        run(tmp_path, fail)
    assert time.monotonic() - started < 300
    message = str(caught.value)
    assert message.startswith("process 1 ended with an error")
    assert "ZeroDivisionError: the cause" in message
    log = Path(message.rpartition(" ")[2])
    assert "ZeroDivisionError" in log.read_text()


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    def die() -> None:
        import os
        import signal
        import time

        time.sleep(1.0)
        if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(RunError, match="process 1 was killed"):
        run(tmp_path, die)


FOLLOWER = """
import sys
from pathlib import Path
from bigdiff.cluster.follow import Patience, follow
from bigdiff.cluster.machine import Machine, fit
from bigdiff.cluster.submit import start
from bigdiff.config.errors import door
from bigdiff.config.load import load_cluster

folder, manners = Path(sys.argv[1]), sys.argv[2]

def train():
    import os, signal, time
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, (lambda *_: asked.append(1)) if manners == "good" else signal.SIG_IGN)
    rank = os.environ["SUBMITIT_LOCAL_GLOBALID"]
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    print("training", flush=True)
    while not asked:
        time.sleep(0.05)
    time.sleep(0.5)
    (folder / f"saved-{rank}").touch()
    print("saved", flush=True)

def main():
    here = Machine(cores=2)
    job = start(train, folder, fit(load_cluster("local"), here), here)
    follow(job, lambda line: print(line, flush=True), Patience(saving=60.0))

if __name__ == "__main__":
    door(main)
"""


@contextmanager
def begun(folder: Path, manners: str) -> Iterator[subprocess.Popen[str]]:
    script = folder / "follower.py"
    script.write_text(FOLLOWER)
    process = subprocess.Popen(
        [sys.executable, script, folder, manners],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own process group, as a command in a terminal has
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        wait_for([folder / "pid-0", folder / "pid-1"])
        yield process
    finally:
        with suppress(ProcessLookupError):  # none is left after a test that passes
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(files: list[Path]) -> None:
    deadline = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(folder: Path) -> bool:
    pids = [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the signal goes to everybody in the group


def terminate(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)  # what `timeout` or a supervisor does: to the one process


@pytest.mark.parametrize("stop", [ctrl_c, terminate])
def test_a_stop_lets_every_process_save(tmp_path: Path, stop: Callable[[subprocess.Popen[str]], None]) -> None:
    with begun(tmp_path, "good") as process:
        stop(process)
        output, errors = process.communicate(timeout=60)
        assert gone(tmp_path)
    assert process.returncode == 130, errors
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()
    assert output.splitlines()[-1] == "saved"
    assert errors == "interrupted; the same command again continues\n"


def test_a_second_ctrl_c_ends_what_does_not_listen(tmp_path: Path) -> None:
    with begun(tmp_path, "bad") as process:
        ctrl_c(process)
        assert process.stdout is not None
        assert "saves a checkpoint first" in process.stdout.readline()
        ctrl_c(process)  # the echo of the first: `timeout` signals twice
        time.sleep(1.5)
        assert process.poll() is None
        ctrl_c(process)
        process.communicate(timeout=120)
        assert gone(tmp_path)
    assert process.returncode == 130


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    file = tmp_path / "log"
    tail = Tail(file)
    assert tail.lines() == []
    file.write_bytes(b"one\ntw")
    assert tail.lines() == ["one"]
    with file.open("ab") as log:
        log.write("o \u00fc\nsubmitit INFO (2026-01-01) - Starting\n 1%\r 2%\r\n\nend".encode())
    assert tail.lines() == ["two \u00fc", " 2%", ""]
