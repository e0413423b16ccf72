"""Stages and tasks on SLURM, followed from a terminal until they end: changes of state, logs of first processes.

Nothing hangs on it: a job goes on when this is interrupted, and the same command again follows it further.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.cluster import status
from bigdiff.cluster.chain import Chain, is_done
from bigdiff.cluster.follow import Tail
from bigdiff.cluster.status import Found, Queued
from bigdiff.config.errors import RunError
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage

PAUSE: Final = 2.0  # seconds between two looks
_GRACE: Final = 60.0  # for what a job that SLURM has ended wrote: network file systems are slow


@dataclass(kw_only=True)
class _Followed:
    """What was said of a stage or task."""

    work: Stage | Task
    folder: Path  # above its logs
    beside: bool = False  # at a checkpoint: the rest goes on without it
    state: str = ""
    tail: Tail | None = None
    gone: float = 0.0  # since when SLURM does not know its job, in seconds of the monotonic clock

    @property
    def over(self) -> bool:
        """Whether it is finished."""
        return self.state == "finished"


def until_done(chain: Chain, say: Callable[[str], None], pause: float = PAUSE, grace: float = _GRACE) -> None:
    """Follow what was submitted until all of it is finished, with the tasks at checkpoints that come up meanwhile.

    Raises:
        RunError: when a stage or task ends before, naming its log, or SLURM does not answer. For a task at a checkpoint
            once the others are finished.
    """
    left = [_Followed(work=node.work, folder=chain.folder(node)) for node in chain.nodes]
    seen, ended = {one.folder for one in left}, ""
    while left:
        found = {one.folder: status.find(one.folder) for one in left}
        queued = status.queue([each.job for each in found.values() if each.on_slurm])  # asked once for all
        for one in list(left):
            here = found[one.folder]
            complaint = _looked_at(one, here, queued.get(here.job), say, grace)
            if complaint and not one.beside:
                raise RunError(complaint)
            if complaint:
                say(complaint)
                ended = ended or complaint
            if one.over or complaint:
                left.remove(one)
        for node in chain.due():
            folder = chain.folder(node)
            if folder not in seen and not is_done(node):
                left.append(_Followed(work=node.work, folder=folder, beside=True))
            seen.add(folder)
        time.sleep(pause if left else 0.0)
    if ended:
        raise RunError(ended)


def _looked_at(one: _Followed, found: Found, queued: Queued | None, say: Callable[[str], None], grace: float) -> str:
    """Say what is new of a stage or task; the complaint of one that has ended before it was finished."""
    row = status.stand(one.work, found, queued)
    for line in _new_lines(one, found.job):
        say(line)
    if row.state != one.state:
        where = f" on {queued.nodes}" if queued and queued.nodes else ""
        say(f"{row.name}: job {row.job} is {row.state}{where}" if queued else f"{row.name} is {row.state}")
        one.state = row.state
    if one.over or queued is not None:
        one.gone = 0.0
        return ""
    one.gone = one.gone or time.monotonic()
    if time.monotonic() - one.gone <= grace:
        return ""
    where = f" at step {row.step} of {row.steps}" if row.steps else ""
    crashed = f": {row.why}" if row.why else ""
    if not found.job:
        return f"{row.name} was not submitted: the same command again submits it"
    return f"{row.name} ended{where}{crashed} (logs in {one.folder / 'logs'})"


def _new_lines(one: _Followed, job: str) -> list[str]:
    if one.tail is None:
        log = next((one.folder / "logs").glob(f"*-{job}/{job}_0_log.out"), None) if job else None
        if log is None:
            return []
        one.tail = Tail(log)
    return one.tail.lines()
