"""Weights, optimizer and averages out of a checkpoint: when a run starts again, and when it goes back."""

import sys
from dataclasses import dataclass

from bigdiff.checkpoint import reader
from bigdiff.checkpoint.content import MASTER, MOMENTS, Saved, began
from bigdiff.checkpoint.layout import run_folder
from bigdiff.checkpoint.state import TrainState
from bigdiff.config.schema import Stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.ema import Averages
from bigdiff.runtime.world import World
from bigdiff.train import handover
from bigdiff.train.recovery import Curve


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run stands when it starts."""

    state: TrainState
    curve: Curve
    start: str = ""  # which start wrote the checkpoint, if that is known
    saved: bool = False  # whether there is a checkpoint


def warn(line: str) -> None:
    """A warning on standard error, from every rank that has it."""
    sys.stderr.write(f"warning: {line}\n")


def newest(stage: Stage, world: World, engine: Engine, ema: Averages) -> Saved | None:
    """The newest good checkpoint of the stage's run, read for this rank; None before the first; collective.

    Raises:
        UsageError, RunError: as bigdiff.checkpoint.reader.load.
    """
    names = reader.Names(needed=(MASTER, *MOMENTS), welcome=tuple(ema.tensors))
    return reader.load(run_folder(stage.runs, stage.name), world, engine.partition, names, warn)


def put_back(stage: Stage, saved: Saved, engine: Engine, ema: Averages) -> list[str]:
    """Make the engine and its averages what `saved` holds; gives sentences on averages that differ; collective."""
    carried = handover.recorded(stage, run_folder(stage.runs, stage.name))
    moments = {name: saved.vectors[name] for name in MOMENTS}
    engine.restore(saved.vectors[MASTER], moments, carried.updates + saved.state.updates)
    engine.began = carried.step
    parts = {name: engine.partition.split(saved.vectors[name]) for name in ema.tensors if name in saved.vectors}
    return ema.restore(parts, began(saved.about), engine.partition.masters, saved.state.updates)
