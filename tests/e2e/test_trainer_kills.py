"""Training that is killed twenty times, ranks at random and at random times, ends with the weights of a calm one."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigdiff.checkpoint import layout, reader

STEPS, EVERY, KILLS, RANKS = 300, 10, 20, 2

Start = Callable[..., Any]  # the fixture of tests/e2e/conftest.py


def arguments(runs: Path) -> list[str]:
    return [
        f"runs={runs}",
        f"steps={STEPS}",
        f"checkpoint.every={EVERY}",
        "checkpoint.keep=2",
        "log.every=1",
        "data.audit=true",
    ]


def newest(runs: Path) -> int:
    found = layout.latest(runs / "toy")
    return layout.step_of(found) if found else 0


def harass(start: Start, runs: Path, dice: random.Random) -> int:
    """Kill lives at random moments of steps and saves; gives the last step that was seen."""
    reached = 0
    for number in range(KILLS):
        life, before = start(RANKS, *arguments(runs)), newest(runs)
        # a fair share of the way, so that the kills are spread over the run; some fall into the start
        target = before + dice.randrange(-3, 2 * (STEPS - before) // (KILLS - number) + 1)
        deadline = time.monotonic() + 300
        while life.step() < target and life.alive():
            assert time.monotonic() < deadline, life.texts()[0][-3000:]
            time.sleep(0.002)
        time.sleep(dice.random() * (0.08 if target > before else 2.0))
        reached = max(reached, life.step())
        victims = life.pids if dice.random() < 0.3 else [dice.choice(life.pids)]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        assert life.ended(180), f"the others do not end: {life.texts()[0][-3000:]}"
        # at most the save under way is lost, never one before it
        assert newest(runs) >= (reached // EVERY - 1) * EVERY
        assert newest(runs) >= before
    return reached


def test_twenty_kills_leave_no_trace_in_the_weights(start: Start, tmp_path: Path) -> None:
    calm, harassed = tmp_path / "calm", tmp_path / "harassed"
    assert start(RANKS, *arguments(calm)).ended(400)
    reached = harass(start, harassed, random.Random(4))
    assert reached > STEPS // 3
    last = start(RANKS, *arguments(harassed))
    assert last.ended(400)
    assert last.texts()[0].splitlines()[-1] == f"finished {STEPS}"
    for which in ("raw", "ema"):
        expected, got = (
            reader.read_weights(layout.checkpoint(runs / "toy", STEPS), which) for runs in (calm, harassed)
        )
        assert expected.keys() == got.keys()
        for name, weight in expected.items():
            assert torch.equal(weight, got[name]), name
    names = [path.name for path in layout.checkpoints(harassed / "toy").iterdir()]
    assert sorted(names) == sorted(path.name for path in layout.checkpoints(calm / "toy").iterdir()), names
    curves = [
        [json.loads(line)["train/loss"] for line in (runs / "toy" / layout.METRICS).read_text().splitlines()]
        for runs in (calm, harassed)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-9)
