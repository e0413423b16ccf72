"""Hand-over between runs that do not train the same parameters: what one froze the other may train, and the reverse.

The new run's frozen parts are settled before (bigdiff.train.kept); here its trained parameters get their values, by
name: from the checkpoint's vector, from the frozen weights of the run before, or, for a text encoder that it used as it
was, from where the stage loads it.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from bigdiff.checkpoint import frozen
from bigdiff.checkpoint.index import Index
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.engine.partition import Partition, Piece, Placed
from bigdiff.models.ema import Averages


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    """What a stage has beside the weights of the run before."""

    kept: Set[str]  # names that the new run freezes and stores
    loaded: Mapping[str, torch.Tensor]  # fp32 values of trained parameters that the stage loads, a text encoder's


def same(found: Index, partition: Partition) -> bool:
    """Whether both train the same parameters in the same order, so that their flat vectors are one."""
    return found.layout == partition.layout


def rest(stage: Stage, folder: Path, found: Index, partition: Partition, around: Around) -> dict[str, torch.Tensor]:
    """The values of the trained parameters that the checkpoint in `folder` does not hold.

    Raises:
        UsageError: when the run before had another network, or more is to carry over than weights.
    """
    theirs = {placed.name: placed.shape for placed in found.layout}
    ours = {placed.name: placed.shape for placed in partition.layout}
    before = frozen.read(folder.parent.parent, found.identity.frozen)
    there = {**{name: tuple(one.shape) for name, one in before.items()}, **theirs}
    borrowed = set() if any(name.startswith("text_encoder.") for name in there) else set(around.loaded)
    strange = [
        name for name, shape in ours.items() if there.get(name, None if name not in borrowed else shape) != shape
    ]
    strange += [name for name in there if name not in ours and name not in around.kept]
    if strange:
        raise UsageError(f"{folder} holds another network than this stage's model ({sorted(strange)[0]} differs)")
    also = [key for key in ("init_ema", "init_optimizer") if getattr(stage, key)]
    others = sorted(theirs.keys() ^ ours.keys())  # none when the order alone differs
    if also and others:
        raise UsageError(
            f"{also[0]}=true, but {folder} trained other parameters ({others[0]} is in one of the two): the weights "
            f"alone can be taken over"
        )
    return {name: before[name] if name in before else around.loaded[name] for name in ours if name not in theirs}


def pieces(found: Index, partition: Partition) -> list[Piece]:
    """The pieces of this rank's local vector as ranges of the checkpoint's flat one, for the parameters it holds."""
    there = {placed.name: placed for placed in found.layout}
    result = []
    for placed, low, high, local in _parts(partition.layout, partition.pieces):
        if placed.name in there:
            result.append(Piece(local=local, start=there[placed.name].offset + low, length=high - low))
    return result


def fill(local: torch.Tensor, partition: Partition, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A local vector [length] with this rank's parts of named, shaped `values` in their places."""
    for placed, low, high, at in _parts(partition.layout, partition.pieces):
        if placed.name in values:
            local[at : at + high - low] = values[placed.name].reshape(-1)[low:high]
    return local


def put(engine: Engine, ema: Averages, values: Mapping[str, torch.Tensor]) -> None:
    """Give some trained parameters of an engine that has made no step these fp32 values; collective."""
    masters = engine.partition.masters
    local = torch.cat([master.detach().cpu().reshape(-1) for master in masters])
    engine.restore(fill(local, engine.partition, values), None, 0)
    ema.restore({}, {}, masters, 0)


def _parts(layout: Sequence[Placed], owned: Sequence[Piece]) -> list[tuple[Placed, int, int, int]]:
    """(parameter, from, to, place in the local vector) for each part of a parameter that a piece covers."""
    found, ordered, number = [], sorted(owned, key=lambda piece: piece.start), 0
    for placed in layout:
        end = placed.offset + placed.size
        while number < len(ordered) and ordered[number].start + ordered[number].length <= placed.offset:
            number += 1
        at = number
        while at < len(ordered) and ordered[at].start < end:
            piece = ordered[at]
            low, high = max(piece.start, placed.offset), min(piece.start + piece.length, end)
            found.append((placed, low - placed.offset, high - placed.offset, piece.local + low - piece.start))
            at += 1
    return found
