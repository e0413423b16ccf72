"""How long a run on a real SLURM does not train for each kind of fault: from step to step, by turns."""

import os
import platform
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bigdiff.checkpoint.layout import METRICS
from bigdiff.cluster.suspects import START

Slurm = Any  # of tests/cluster/conftest.py
RESULTS = Path(__file__).parent / "results"
ROUNDS = int(os.environ.get("BIGDIFF_BENCH_ROUNDS", "3"))
STEP = re.compile(r"^step +\d+/", re.MULTILINE)
BEFORE = 60  # steps until the fault; a checkpoint in twenty


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds since the last step before."""

    requeued: float  # SLURM has it in its queue again
    started: float  # the batch script runs
    step: float  # the first step is done


def killed(slurm: Slurm, job: Any) -> None:
    """A rank is ended by SIGKILL."""
    os.kill(job.rank_1(), signal.SIGKILL)


def warned(slurm: Slurm, job: Any) -> None:
    """`scancel --signal=USR2`, as before a time limit."""
    slurm.run("scancel", "--signal=USR2", job.number)


def limited(slurm: Slurm, job: Any) -> None:
    """The job's time limit: its warning is due at once, and comes when SLURM next looks."""
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=5")


def requeued(slurm: Slurm, job: Any) -> None:
    """`scontrol requeue`."""
    slurm.run("scontrol", "requeue", job.number)


def preempted(slurm: Slurm, job: Any) -> None:
    """A job of a partition that goes before takes a node for a second; two others are free."""
    slurm.run("sbatch", "-p", "urgent", "-w", last(slurm, job), "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def down(slurm: Slurm, job: Any) -> None:
    """`scontrol update NodeName=... State=DOWN`; others are free."""
    slurm.run("scontrol", "update", f"NodeName={last(slurm, job)}", "State=DOWN", "Reason=test")


def lost(slurm: Slurm, job: Any) -> None:
    """A node's slurmd and all that runs there are gone at once (SlurmdTimeout=10); others are free."""
    slurm.lose(last(slurm, job))


def last(slurm: Slurm, job: Any) -> str:
    return str(slurm.run("scontrol", "show", "hostnames", job.shown()["NodeList"]).split()[-1])


def of(slurm: Slurm, job: Any, strike: Callable[[Slurm, Any], None]) -> Times:
    """What one fault costs."""
    job.wait(step=BEFORE)
    before, first = job.log().count(START), int(job.shown()["Restarts"])
    strike(slurm, job)
    metrics, size, last_step = job.run / METRICS, 0, time.monotonic()

    def back_in_the_queue() -> bool:
        nonlocal size, last_step
        if metrics.stat().st_size > size:
            size, last_step = metrics.stat().st_size, time.monotonic()
        return int(job.shown()["Restarts"]) > first

    job.until(back_in_the_queue, "requeue", 240)
    requeue = time.monotonic() - last_step
    if strike is limited:  # or its next start is warned at once, too
        slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.until(lambda: job.log().count(START) > before, "start", 240)
    started = time.monotonic() - last_step
    job.until(lambda: STEP.search(job.log().rpartition(START)[2]), "step", 240)
    return Times(requeued=requeue, started=started, step=time.monotonic() - last_step)


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_from_the_fault_to_the_next_step(slurm: Slurm, start: Callable[..., Any]) -> None:
    faults = (killed, warned, limited, requeued, preempted, down, lost)
    found: dict[Callable[..., None], list[Times]] = {fault: [] for fault in faults}
    for number in range(ROUNDS):
        for fault in faults:
            job = start(f"{fault.__name__}-{number}", "steps=1000000")
            found[fault].append(of(slurm, job, fault))
            slurm.run("scancel", job.number)
            job.end()
            for node in set(("n1", "n2", "n3", "n4")) - set(slurm.idle()):
                if fault is lost:
                    slurm.boot(node)
                slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            job.until(lambda: len(slurm.idle()) == 4, "idle nodes", 60)
    write(found)


def write(found: dict[Callable[..., None], list[Times]]) -> None:
    """The table, into tests/bench/results/."""
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    load = os.getloadavg()[0]
    lines = [
        "From the last step before a fault to the next, a toy stage on a real SLURM of four nodes; two processes on",
        "two nodes, KillWait=3, cred_expire=5, SlurmdTimeout=10, a checkpoint every 20 steps. Seconds, medians (all).",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        f"{version}, {ROUNDS} rounds",
        "",
        f"{'fault':12}{'requeued':>10}{'started':>10}{'next step':>11}",
    ]
    for fault, every in found.items():
        middle = [statistics.median(getattr(one, key) for one in every) for key in ("requeued", "started", "step")]
        each = ", ".join(f"{one.step:.1f}" for one in every)
        lines.append(f"{fault.__name__:12}{middle[0]:10.1f}{middle[1]:10.1f}{middle[2]:11.1f}  ({each})")
    lines += ["", *(f"{fault.__name__}: {(fault.__doc__ or '').strip()}" for fault in found)]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-faults.txt").write_text(text)
    print(text)
