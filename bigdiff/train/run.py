"""What a running stage consists of, and what comes out of it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.schema import Stage
from bigdiff.data.latents import Batch
from bigdiff.diffusion.objective import Objective
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.preview import Previewer
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models.ema import Ema
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.world import World


@dataclass(kw_only=True, slots=True)
class Run:
    """One stage on this process; `state` alone changes."""

    stage: Stage
    folder: Path
    world: World
    batches: Generator[list[Batch], None, None]  # micro-batches of each optimizer step, from `state` on
    objective: Objective
    engine: Engine
    ema: Ema
    scaling_factor: float  # of the VAE's latents
    empty_tokens: torch.Tensor  # int64 [L], the caption "" of dropped text
    state: TrainState
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
