"""What becomes of a run whose ranks hang, are stopped, killed or warned from outside: real ranks, real DeepSpeed."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bigdiff.checkpoint import layout, reader
from bigdiff.runtime.watchdog import FAILED, stack_file

Start = Callable[..., Any]  # the fixture of tests/e2e/conftest.py

HANG = """
import os, time
from bigdiff.data.latents import LatentReader
fill = LatentReader.fill
def stuck(self, held, row, position, picks):
    if os.environ["RANK"] == "{rank}" and position >= 8 * 9:
        time.sleep(1000)
    return fill(self, held, row, position, picks)
LatentReader.fill = stuck
"""
FAULT = """
import os, signal, time
from bigdiff.checkpoint import layout
from bigdiff.train import loop
passes = loop.forward_backward
def fault(run, batches, step):
    if step == 9 and os.environ["RANK"] == "{rank}":
        end = time.monotonic() + 20  # below the time-out; writing behind may still be at step 8, and would end with us
        while layout.step_of(layout.latest(run.folder)) < 8 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.{number})
    return passes(run, batches, step)
loop.forward_backward = fault
"""


def test_a_rank_that_hangs_is_stopped_or_killed_is_named_and_the_run_ends(start: Start, tmp_path: Path) -> None:
    """All at the same time; a hang shows after engine.timeout_seconds, the others no later."""
    common = ("steps=2000", "batch.micro=4", "checkpoint.every=4", "engine.timeout_seconds=30")
    hung = {rank: start(2, *common, f"name=hung{rank}", before=HANG.format(rank=rank)) for rank in (0, 1)}
    stopped = start(2, *common, "name=stopped", before=FAULT.format(rank=1, number="SIGSTOP"))
    killed = start(2, *common, "name=killed", before=FAULT.format(rank=1, number="SIGKILL"))
    for rank, ranks in hung.items():
        first, second = ranks.wait()
        sentence = failed(first)
        assert "failed: " not in second
        assert f"failed: rank {rank} (" in sentence and "hangs in data of step 9" in sentence
        assert "while others wait in forward and backward of step 9" in sentence
        assert ranks.codes() == [FAILED, FAILED]
        for number in (0, 1):
            stack = stack_file(tmp_path / f"hung{rank}", number).read_text()
            assert f"rank {number} (" in stack and "\nstep 9, " in stack
            assert ("stuck" in stack) is (number == rank)
            assert ("forward_backward" in stack) is (number != rank)
    killed.wait()
    deadline = time.monotonic() + 180
    while stopped.pids[0] in stopped.alive():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(stopped.pids[1], signal.SIGKILL)
    for name, ranks in (("stopped", stopped), ("killed", killed)):
        sentence = failed(ranks.wait()[0])
        assert "failed: rank 1 (" in sentence and "does not answer (killed, stopped or cut off)" in sentence
        assert ranks.codes() == [FAILED, -signal.SIGKILL]
        assert "forward_backward" in stack_file(tmp_path / name, 0).read_text()
        newest = layout.latest(tmp_path / name)
        assert newest is not None and layout.step_of(newest) == 8


def failed(text: str) -> str:
    """The one line that says why a run ended."""
    (sentence,) = (line for line in text.splitlines() if line.startswith("failed: "))
    return sentence


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_to_one_rank_saves_on_all_whatever_follows(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    ranks = start(2, "steps=100000", "batch.micro=4", "checkpoint.every=100000", f"name={number.name}")
    deadline = time.monotonic() + 300
    while ranks.step() < 5:
        assert time.monotonic() < deadline and len(ranks.alive()) == 2, ranks.texts()
        time.sleep(0.02)
    os.kill(ranks.pids[1], number)
    while len(ranks.alive()) == 2:
        for pid in ranks.pids:  # impatient, while it saves too
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.002)
    texts = ranks.wait()
    assert ranks.codes() == [0, 0], texts
    ended = [text.splitlines()[-1] for text in texts]
    assert ended[0] == ended[1] and ended[0].startswith("stopped ")
    newest = layout.latest(tmp_path / number.name)
    assert newest is not None and layout.step_of(newest) == int(ended[0].split()[1])
    assert reader.damaged(newest) == ""
