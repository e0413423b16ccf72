"""Stages on SLURM, followed from a terminal until they end: each change of state, and the log of their first process.

Nothing hangs on it: a job goes on when this is interrupted, and the same command again follows it further.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster import status
from bigdiff.cluster.follow import Tail
from bigdiff.cluster.status import Found, Queued
from bigdiff.config.errors import RunError
from bigdiff.config.schema import Stage

PAUSE: Final = 2.0  # seconds between two looks
_GRACE: Final = 60.0  # for what a job that SLURM has ended wrote: network file systems are slow


@dataclass(kw_only=True)
class _Followed:
    """What was said of a stage."""

    stage: Stage
    state: str = ""
    tail: Tail | None = None
    gone: float = 0.0  # since when SLURM does not know its job, in seconds of the monotonic clock


def until_done(
    stages: Sequence[Stage], say: Callable[[str], None], pause: float = PAUSE, grace: float = _GRACE
) -> None:
    """Follow the submitted `stages` until each of them is finished.

    Raises:
        RunError: when one ends before its last step, naming its log, or SLURM does not answer.
    """
    left = [_Followed(stage=stage) for stage in stages]
    while left:
        found = {one.stage.name: status.find(run_folder(one.stage.runs, one.stage.name)) for one in left}
        queued = status.queue([each.job for each in found.values() if each.on_slurm])  # asked once for all
        for one in list(left):
            here = found[one.stage.name]
            if _looked_at(one, here, queued.get(here.job), say, grace):
                left.remove(one)
        time.sleep(pause if left else 0.0)


def _looked_at(one: _Followed, found: Found, queued: Queued | None, say: Callable[[str], None], grace: float) -> bool:
    """Say what is new of a stage; whether it is finished."""
    run = run_folder(one.stage.runs, one.stage.name)
    row = status.stand(one.stage, found, queued)
    for line in _new_lines(one, run, found.job):
        say(line)
    if row.state != one.state:
        where = f" on {queued.nodes}" if queued and queued.nodes else ""
        say(f"{one.stage.name}: job {row.job} is {row.state}{where}" if queued else f"{one.stage.name} is {row.state}")
        one.state = row.state
    if row.state == "finished":
        return True
    if queued is not None:
        one.gone = 0.0
        return False
    one.gone = one.gone or time.monotonic()
    if time.monotonic() - one.gone > grace:
        crashed = f": {row.why}" if row.why else ""
        raise RunError(f"{one.stage.name} ended at step {row.step} of {row.steps}{crashed} (logs in {run / 'logs'})")
    return False


def _new_lines(one: _Followed, run: Path, job: str) -> list[str]:
    if one.tail is None:
        log = next((run / "logs").glob(f"*-{job}/{job}_0_log.out"), None) if job else None
        if log is None:
            return []
        one.tail = Tail(log)
    return one.tail.lines()
