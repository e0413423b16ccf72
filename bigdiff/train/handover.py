"""What a stage takes over from the run it starts from: weights, averages, optimizer and schedule, by choice.

Each rank reads its own pieces, after all ranks together have verified the checksums of the checkpoint. What was handed
over is written to handover.json in the new run, once; every later start is held against it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from bigdiff.checkpoint import layout, predecessor, reader
from bigdiff.checkpoint.content import MASTER, MOMENTS, began
from bigdiff.checkpoint.index import Damage, Index
from bigdiff.config import averages
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.engine.partition import Piece
from bigdiff.models.ema import Averages
from bigdiff.runtime.files import sha256, write_json
from bigdiff.runtime.world import World
from bigdiff.train import regrouped
from bigdiff.train.regrouped import Around

FILE: Final = "handover.json"
FORMAT: Final = 1
_CHOICES: Final = ("init_from", "init_step", "init_weights", "init_ema", "init_optimizer", "init_schedule")
_CHUNK: Final = 1 << 26  # elements of the flat vector that are hashed at once: 256 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """How far the run before had come in what goes on here; it counts on top of this run's own steps."""

    updates: int = 0  # AdamW's count
    step: int = 0  # of the learning rate's schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """handover.json: what a run began with."""

    chosen: dict[str, Any]  # the stage's init_* settings
    checkpoint: str  # folder that it was read from
    step: int
    samples_seen: int
    updates: int  # optimizer updates that the weights had had in that run
    index_sha256: str  # of its index.json, which holds the sha256 of each of its files
    weights: str  # "raw" or the average's name, "ema/0.9999"
    weights_sha256: str  # over the weights handed over, see `digest`
    carried: Carried
    format: int = FORMAT


def begin(
    stage: Stage, run: Path, world: World, engine: Engine, ema: Averages, around: Around
) -> tuple[Record, list[str]]:
    """Put what `stage` starts from into the engine and its averages, and write the record; collective.

    Gives the record, and sentences for a person on averages that could not go on.

    Raises:
        UsageError: on all ranks, when the checkpoint is absent, not the run's end, damaged, of another network, without
            the weights that are asked for, or not the one that handover.json names.
    """
    folder = world.first_does(lambda: predecessor.chosen(stage))  # no rank sees an older state of a shared disk
    found = _verified(folder, world)
    alike = regrouped.same(found, engine.partition)
    rest = {} if alike else regrouped.rest(stage, folder, found, engine.partition, around)
    name = averages.held(stage.init_weights, tuple(began(found.about)), str(folder))
    carried = _carried(stage, found)
    vectors = _local_vectors(stage, folder, found, engine, name)
    moments = {key: vectors[key] for key in MOMENTS} if stage.init_optimizer else None
    engine.restore(regrouped.fill(vectors[_vector(name)], engine.partition, rest), moments, carried.updates)
    said = _begin_averages(stage, ema, engine, found, vectors)
    record = world.first_does(lambda: _record(stage, folder, found, name, carried))  # one rank reads all of the weights
    world.first_does(lambda: _keep(run, record))
    return record, said


def recorded(stage: Stage, run: Path) -> Carried:
    """What the run in `run`, which has a checkpoint, took over when it began.

    Raises:
        UsageError: when the stage's init_* settings are not those that the run began with, or the record is gone.
    """
    file = run / FILE
    if not file.is_file():
        if stage.init_from:
            raise UsageError(
                f"init_from={stage.init_from}, but {run} has checkpoints and no {FILE}, which says what it began with: "
                f"bring it back, set init_from= if it began with random weights, or use another `name`"
            )
        return Carried()
    record, settings = read(file), _settings(stage)
    changed = [
        f"{key} is {settings[key]!r}, the run began with {record.chosen.get(key)!r}"
        for key in _CHOICES
        if settings[key] != record.chosen.get(key)
    ]
    if changed:
        raise UsageError(f"{run} cannot be continued: {'; '.join(changed)}. Undo that, or use another `name` or `runs`")
    return record.carried


def read(file: Path) -> Record:
    """A handover.json.

    Raises:
        UsageError: when it cannot be read, or was written by another version.
    """
    try:
        return _parsed(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): a run that began from another cannot go on without it"
        ) from error


def digest(folder: Path, found: Index, name: str) -> str:
    """Sha256 over a checkpoint's layout (names and shapes as JSON) and its flat fp32 vector `name`, little-endian.

    The same whatever the ranks and the ZeRO stage that wrote it.
    """
    total = hashlib.sha256(json.dumps([[placed.name, list(placed.shape)] for placed in found.layout]).encode())
    vector = _vector(name)
    for start in range(0, found.total, _CHUNK):
        length = min(_CHUNK, found.total - start)
        piece = Piece(local=0, start=start, length=length)
        part = reader.local_vectors(folder, found, [vector], [piece], length)[vector]
        total.update(part.numpy().astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def line(record: Record) -> str:
    """For a person."""
    also = {
        "the averages": record.chosen["init_ema"],
        f"AdamW after {record.carried.updates:,} updates": record.chosen["init_optimizer"],
        f"the schedule at step {record.carried.step:,}": record.chosen["init_schedule"],
    }
    what = ", ".join([f"{record.weights} weights", *(name for name, on in also.items() if on)])
    return f"{what} from {record.checkpoint} (sha256 {record.weights_sha256[:16]}, in {FILE})"


def _vector(name: str) -> str:
    return MASTER if name == averages.RAW else name


def _verified(folder: Path, world: World) -> Index:
    """The index of a checkpoint whose files were checked by all ranks, each a share of them."""
    problem = next((one for one in world.gather(reader.damaged(folder, world.rank, world.size)) if one), "")
    if problem:
        raise UsageError(f"checkpoint {folder} is damaged ({problem}): choose another one with init_step")
    return reader.read_index(folder)


def _local_vectors(stage: Stage, folder: Path, found: Index, engine: Engine, name: str) -> dict[str, torch.Tensor]:
    names = {_vector(name): None}  # a dict keeps the order
    if stage.init_optimizer:
        names |= dict.fromkeys(MOMENTS)
    if stage.init_ema:
        names |= dict.fromkeys(began(found.about))
    missing = [one for one in names if one not in found.vectors]
    if missing:
        raise UsageError(f"{folder} holds no {', '.join(missing)}, only {', '.join(found.vectors)}")
    try:
        pieces = regrouped.pieces(found, engine.partition)
        return reader.local_vectors(folder, found, list(names), pieces, engine.partition.length)
    except Damage as error:
        raise UsageError(f"checkpoint {folder} was verified and then could not be read ({error})") from error


def _begin_averages(
    stage: Stage, ema: Averages, engine: Engine, found: Index, vectors: dict[str, torch.Tensor]
) -> list[str]:
    """The averages go on, with their counts, or begin at the masters."""
    masters = engine.partition.masters
    if not stage.init_ema:
        ema.restore({}, {}, masters, 0)
        return []
    counts = {name: begun - found.state.updates for name, begun in began(found.about).items()}
    return ema.restore({name: engine.partition.split(vectors[name]) for name in counts}, counts, masters, 0)


def _carried(stage: Stage, found: Index) -> Carried:
    """The counts that go on, on top of what that run had taken over itself."""
    file = predecessor.run_of(stage) / FILE
    before = read(file).carried if file.is_file() else Carried()
    return Carried(
        updates=before.updates + found.state.updates if stage.init_optimizer else 0,
        step=before.step + found.state.step if stage.init_schedule else 0,
    )


def _record(stage: Stage, folder: Path, found: Index, name: str, carried: Carried) -> Record:
    return Record(
        chosen=_settings(stage),
        checkpoint=str(folder),
        step=found.state.step,
        samples_seen=found.state.samples_seen,
        updates=found.state.updates,
        index_sha256=sha256(folder / layout.INDEX),
        weights=name,
        weights_sha256=digest(folder, found, name),
        carried=carried,
    )


def _keep(run: Path, record: Record) -> None:
    """Write the record, or hold it against that of an earlier start which ended before its first checkpoint.

    Raises:
        UsageError: when that start began with something else.
    """
    file = run / FILE
    if not file.is_file():
        write_json(file, asdict(record))
        return
    earlier = read(file)
    changed = [key for key in _SAME if getattr(earlier, key) != getattr(record, key)]
    if changed:
        what = ", ".join(f"{key} {getattr(earlier, key)}, now {getattr(record, key)}" for key in changed)
        raise UsageError(f"{file} says that an earlier start began with {what}: delete it to begin with this")


_SAME: Final = ("chosen", "step", "index_sha256", "weights", "weights_sha256", "carried")


def _settings(stage: Stage) -> dict[str, Any]:
    return {key: getattr(stage, key) for key in _CHOICES}


def _parsed(plain: dict[str, Any]) -> Record:
    if plain["format"] != FORMAT:
        raise ValueError(f"its format is {plain['format']!r}, this version reads {FORMAT}")
    return Record(**{**plain, "carried": Carried(**plain["carried"])})
