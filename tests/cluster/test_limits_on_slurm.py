"""A real SLURM that takes a run's nodes from it: at its time limit, and for a job that goes before."""

import re
from collections.abc import Callable
from typing import Any

from bigdiff.cluster.starts import starts

Slurm = Any  # of tests/cluster/conftest.py


def test_a_run_that_reaches_its_time_limit_goes_on(slurm: Slurm, start: Callable[..., Any]) -> None:
    endless = ("steps=1000000", "checkpoint.every=500")
    plain = start("plain", *endless, exclude="n[3-4]")
    job = start("limited", *endless, exclude="n[1-2]", time_minutes=2, signal_seconds=30)
    saved = re.compile(r"told to stop \(SIGUSR2\), saved at step (\d+)")

    def stopped() -> list[int]:  # SLURM warns up to a minute early, maybe before the first step
        return [int(found.group(1)) for one in starts(job.run / "logs") if (found := saved.fullmatch(one.ended))]

    job.until(stopped, "time limit", 300)
    reached = stopped()[0]
    job.wait(step=reached + 50)
    plain.wait(step=reached + 50, seconds=300)
    assert reached in [one.step for one in starts(job.run / "logs")], "none of its steps was done twice"
    assert not (job.run / "logs" / "crashes.json").exists()
    both = min(len(plain.losses()), len(job.losses()))
    assert both >= reached + 50 and plain.losses()[:both] == job.losses()[:both]


def test_a_run_that_is_preempted_ends_as_one_that_nothing_happened_to(slurm: Slurm, start: Callable[..., Any]) -> None:
    plain = start("plain", exclude="n[3-4]", partition="urgent")
    job = start("preempted", exclude="n[1-2]")
    job.wait(step=100)
    slurm.run("sbatch", "-p", "urgent", "-w", "n3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    job.until(lambda: job.shown()["Restarts"] == "1", "preemption", 180)
    assert job.end(180) == ("COMPLETED", "0:0", 1)
    assert plain.end(180) == ("COMPLETED", "0:0", 0)
    first, second = starts(job.run / "logs")
    assert second.step > 0 and second.ended == "finished"
    assert first.ended.startswith("told to stop (SIGTERM), saved at step ")
    assert job.losses() == plain.losses()
    assert job.weights() == plain.weights()
