"""The weights that a run keeps as they are: first found at its first start, then always those of its run folder.

So a resume and an export have the very bytes that the first step was computed with, whatever became of the run before
or of the library that drew the seed's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bigdiff.checkpoint import frozen, layout, predecessor, weights
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.runtime.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a run stored."""

    sha256: str  # of the file; "" without one
    names: frozenset[str]


def settle(stage: Stage, world: World, untrained: Mapping[str, nn.Parameter], required: set[str]) -> Kept:
    """Give the parameters that are not trained their lasting values; collective, before the engine takes them.

    `required` are those that must be stored (by model.frozen); the others, a text encoder's, only when the run before
    had trained or stored them, and come from its folder in the stage's config otherwise.

    Raises:
        UsageError: on all ranks, when they are not those that the run began with, or the run before has others.
    """
    run = layout.run_folder(stage.runs, stage.name)

    def stored_once() -> str:
        return frozen.fingerprint(run) if layout.saved(run) else frozen.write(run, _first(stage, untrained, required))

    digest = world.first_does(stored_once)
    stored = frozen.read(run, digest)
    if not required <= stored.keys() <= untrained.keys():
        other = sorted((required - stored.keys()) | (stored.keys() - untrained.keys()))[0]
        raise UsageError(
            f"{run / frozen.NAME} and model.frozen differ ({other}): a run's frozen parts cannot change; undo that, or "
            f"use another `name`"
        )
    put(stored, untrained, str(run / frozen.NAME))
    return Kept(sha256=digest, names=frozenset(stored))


def put(stored: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter], where: str) -> None:
    """Copy tensors into the parameters of the same names.

    Raises:
        UsageError: when a shape differs.
    """
    for name, tensor in stored.items():
        if parameters[name].shape != tensor.shape:
            raise UsageError(f"{where} holds another network than this stage's model ({name} differs)")
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _first(stage: Stage, untrained: Mapping[str, nn.Parameter], required: set[str]) -> dict[str, torch.Tensor]:
    """What the run keeps: of the run before, or the seed's."""
    if not stage.init_from:
        return {name: untrained[name] for name in required}
    folder = predecessor.chosen(stage)
    there = weights.names(folder)
    absent = sorted(required - there)
    if absent:
        raise UsageError(f"{folder} holds another network than this stage's model ({absent[0]} is not in it)")
    wanted = there & untrained.keys()
    if not wanted:
        return {}
    found = weights.complete(folder, stage.init_weights).tensors
    return {name: found[name] for name in wanted}
