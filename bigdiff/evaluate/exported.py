"""A run's checkpoint to judge: exported once as a pipeline, below the evaluation's output."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.reader import read_index
from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation
from bigdiff.config.load import load
from bigdiff.config.schema import Stage
from bigdiff.export import diffusers
from bigdiff.export.measured import ORIGIN
from bigdiff.runtime.files import write_json
from bigdiff.runtime.world import World

PIPELINE: Final = "pipeline"
_STEP: Final = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What is asked of a model before it is drawn from."""

    text: bool  # it draws what a text says
    scheduler: dict[str, Any]  # diffusers' configuration of the one that it was trained for


def resolved(wanted: Evaluation, world: World) -> Evaluation:
    """`wanted`; of a checkpoint with its pipeline, and how many images it was trained on. Collective.

    Raises:
        UsageError: when there is no such checkpoint, or the output holds another one's pipeline.
        RunError: as diffusers.export.
    """
    checkpoint = wanted.checkpoint
    if checkpoint is None:
        return wanted
    samples = world.first_does(lambda: _export(checkpoint, wanted))
    return replace(placed(wanted), samples_seen=samples)


def placed(wanted: Evaluation) -> Evaluation:
    """`wanted`; of a checkpoint with the place of its pipeline, written or not."""
    return wanted if wanted.checkpoint is None else replace(wanted, pipeline=wanted.output / PIPELINE)


def model(checkpoint: Path) -> Model:
    """The model of a checkpoint, exported or not; reads its run's configuration alone.

    Raises:
        UsageError: when there is none that draws.
    """
    stage = load(Stage, [named(checkpoint)[0] / layout.CONFIG])
    if stage.model.autoencoder is not None:
        raise UsageError(f"--checkpoint {checkpoint} is one of an autoencoder, which draws nothing by itself")
    made = diffusers.scheduler if stage.model.vae else diffusers.pixel_scheduler
    return Model(text=stage.model.text is not None, scheduler=dict(made(stage.diffusion).config))


def _export(checkpoint: Path, wanted: Evaluation) -> int:
    """Write the pipeline, unless it is there; samples seen until the checkpoint."""
    run, step = named(checkpoint)
    model(checkpoint)
    folder, origin = wanted.output / PIPELINE, wanted.output / ORIGIN
    asked = {"checkpoint": str(layout.checkpoint(run, step).resolve()), "weights": wanted.weights}
    if not origin.is_file():
        _refuse_other(wanted.output)
        source = diffusers.export(run, folder, wanted.weights, step=step)
        seen = read_index(source.checkpoint).state.samples_seen
        write_json(origin, {**asked, "about": source.which, "samples_seen": seen})
    held = json.loads(origin.read_bytes())
    if {name: held[name] for name in asked} != asked:
        raise UsageError(
            f"--output {wanted.output} holds an evaluation of {held['checkpoint']} ({held['weights']}): choose another "
            f"folder, or delete it"
        )
    return int(held["samples_seen"])


def _refuse_other(output: Path) -> None:
    """An output that is not empty must be what a killed export left."""
    if output.is_dir() and any(not one.name.startswith(PIPELINE) for one in output.iterdir()):
        raise UsageError(f"--output {output} is not empty, and no evaluation of a checkpoint: choose another folder")


def named(folder: Path) -> tuple[Path, int]:
    """Run and step of a checkpoint, whose number may lack its zeros, as in a recipe's {step}.

    Raises:
        UsageError: when it is none.
    """
    if (folder / layout.CONFIG).is_file():
        newest = layout.latest(folder)
        such = f", such as {newest}" if newest else "; it has none yet"
        raise UsageError(f"--checkpoint {folder} is a run: name one of its checkpoints{such}")
    run, step = folder.parent.parent, _STEP.fullmatch(folder.name)
    if not step or layout.checkpoint(run, int(step[1])) not in layout.saved(run) or not (run / layout.CONFIG).is_file():
        raise UsageError(
            f"--checkpoint {folder} is not a checkpoint of a run, such as runs/512px/checkpoints/step-00050000"
        )
    return run, int(step[1])
