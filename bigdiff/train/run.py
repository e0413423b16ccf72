"""What a running stage consists of, and what comes out of it."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.schema import Stage
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.ledger import Ledger
from bigdiff.data.sets import ShardSet
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.grid import Pictures
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models.ema import Averages
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import World
from bigdiff.train.held import Held
from bigdiff.train.held_pictures import HeldPictures
from bigdiff.train.recovery import Curve
from bigdiff.train.task import Micro, Task
from bigdiff.train.usage import Usage

START, CURVE = "start", "curve"  # where a checkpoint names the start that wrote it, and has the curve it saw


class Drawer(Protocol):
    """What shows how far a run has come."""

    def draw(self, weights: dict[str, torch.Tensor]) -> Pictures:
        """A uint8 [H, W, 3] picture from the trained weights by name; the same subjects every time."""


@dataclass(kw_only=True, slots=True)
class Run:
    """One stage on this process; `state`, `curve` and `saved` alone change."""

    stage: Stage
    folder: Path
    world: World
    hosts: Sequence[str]  # each process's node
    watch: Watchdog
    sets: Sequence[ShardSet]
    course: Course
    batches: Generator[list[Micro], None, None]  # micro-batches of each optimizer step, from `state` on
    quarantine: Quarantine  # of what the batches could not use, since this start
    ledger: Ledger | None  # of what each step consumed
    start: str  # this start's name in the audit; "" without one
    task: Task
    engine: Engine
    ema: Averages
    checkpoints: CheckpointWriter
    losses: list[float]  # the log's mean losses since the newest checkpoint
    state: TrainState
    curve: Curve  # of the steps before, by which a spike is told
    saved: bool  # whether there is a checkpoint
    began: int  # samples seen before this start
    identity: Identity
    meters: Meters
    usage: Usage
    writer: Writer | None  # on rank 0
    preview: Drawer | None
    held: Held | HeldPictures | None  # the samples that it is validated on
    stop: Stop
    say: Callable[[str], None]  # one line for a person; silent beyond rank 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Where a run ended: finished, or saved after an agreed stop and to be started again."""

    step: int
    samples_seen: int
    finished: bool
    why: str = ""  # it stopped before, where it did
