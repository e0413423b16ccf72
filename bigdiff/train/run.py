"""What a running stage consists of, and what comes out of it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.schema import Stage
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import Batch
from bigdiff.data.ledger import Ledger
from bigdiff.diffusion.objective import Objective
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.preview import Previewer
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models.ema import Ema
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.world import World

START = "start"  # where a checkpoint names the start that wrote it


@dataclass(kw_only=True, slots=True)
class Run:
    """One stage on this process; `state` alone changes."""

    stage: Stage
    folder: Path
    world: World
    batches: Generator[list[Batch], None, None]  # micro-batches of each optimizer step, from `state` on
    quarantine: Quarantine  # of what the batches could not use, since this start
    ledger: Ledger | None  # of what each step consumed
    start: str  # this start's name in the audit; "" without one
    objective: Objective
    engine: Engine
    ema: Ema
    scaling_factor: float  # of the VAE's latents
    empty_tokens: torch.Tensor  # int64 [L], the caption "" of dropped text
    state: TrainState
    began: int  # samples seen before this start
    identity: Identity
    meters: Meters
    writer: Writer | None  # on rank 0
    preview: Previewer | None
    stop: Stop
    say: Callable[[str], None]  # one line for a person; silent beyond rank 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Where a run ended: finished, or saved after an agreed stop and to be started again."""

    step: int
    samples_seen: int
    finished: bool
