"""A stage that begins with a UNet that others published: its weights, and the record of which they were.

They are taken at the run's first start alone; a resume needs the record in the run folder, and not the file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.pretrained import load_unet
from bigdiff.runtime.files import sha256, write_json
from bigdiff.runtime.world import World

FILE: Final = "pretrained.json"
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """pretrained.json: which weights a run began with."""

    init_unet: str  # the stage's setting
    file: str  # that they were read from
    sha256: str  # of that file
    format: int = FORMAT


def settle(stage: Stage, world: World, module: nn.Module) -> dict[str, Tensor]:
    """Give the UNet in `module` what `init_unet` names, at a run's first start; collective, before the engine has it.

    Gives the fp32 values of those of its parameters that learn, which the engine may round to bf16.

    Raises:
        UsageError: on all ranks, when the weights cannot be had or are of another network, or the run began otherwise.
    """
    run = layout.run_folder(stage.runs, stage.name)
    if world.first_does(lambda: _begun(stage, run)) or not stage.init_unet:
        return {}
    assert isinstance(module, Denoiser), "the stage's rules see to it"
    found = load_unet(stage.init_unet, stage.model.unet, module.unet)
    world.first_does(lambda: _keep(run, stage, found.file))
    _put(found.tensors, module.unet)
    learns = module.trained()
    return {name: found.tensors[name.removeprefix("unet.")].float() for name in learns if name.startswith("unet.")}


def _put(tensors: dict[str, Tensor], unet: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in unet.state_dict().items():
            parameter.copy_(tensors[name])


def _begun(stage: Stage, run: Path) -> bool:
    """Whether the run has a checkpoint, and so its weights.

    Raises:
        UsageError: when it began, or an earlier start of it did, with another `init_unet`.
    """
    file, begun = run / FILE, bool(layout.saved(run))
    if not file.is_file():
        if begun and stage.init_unet:
            raise UsageError(
                f"init_unet={stage.init_unet}, but {run} has checkpoints and no {FILE}, which says what it began with: "
                f"bring it back, set init_unet= if it began with random weights, or use another `name`"
            )
        return begun
    record = read(file)
    if record.init_unet != stage.init_unet:
        mend = "undo that, or use another `name` or `runs`" if begun else f"delete {file} to begin with this"
        raise UsageError(
            f"init_unet is {stage.init_unet!r}, {'the run' if begun else 'an earlier start'} began with "
            f"{record.init_unet!r}: {mend}"
        )
    return begun


def line(run: Path) -> str:
    """For a person."""
    record = read(run / FILE)
    return f"UNet weights from {record.file} (sha256 {record.sha256[:16]}, in {FILE})"


def read(file: Path) -> Record:
    """A pretrained.json.

    Raises:
        UsageError: when it cannot be read, or was written by another version.
    """
    try:
        plain: dict[str, Any] = json.loads(file.read_text())
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']!r}, this version reads {FORMAT}")
        return Record(**plain)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): a run that began with others' weights cannot go on without it"
        ) from error


def _keep(run: Path, stage: Stage, weights: Path) -> None:
    """Write the record, or hold it against that of an earlier start which ended before its first checkpoint."""
    file, digest = run / FILE, sha256(weights)
    if file.is_file() and read(file).sha256 != digest:
        raise UsageError(f"{weights} is not what an earlier start of this run began with: delete {file} to begin anew")
    if not file.is_file():
        write_json(file, asdict(Record(init_unet=stage.init_unet, file=str(weights), sha256=digest)))
