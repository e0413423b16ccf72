"""Copies of the power-function averages along a run, and any average that a person asks for, made of them.

A snapshot is a folder <run>/averages/step-00000800 in the format of a checkpoint that holds these averages alone: each
rank writes what it owns, the folder is written under another name, checked and renamed, and all are kept. The average
of a width that was not tracked is their sum with the factors of bigdiff.models.posthoc, made slice by slice in float64.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bigdiff.checkpoint import index, layout, reader, vectors
from bigdiff.checkpoint.content import MASTER, Content, began
from bigdiff.checkpoint.host import gaps
from bigdiff.checkpoint.index import File, Index
from bigdiff.config import averages
from bigdiff.config.errors import RunError, UsageError
from bigdiff.engine.partition import Partition, Piece, named
from bigdiff.models import posthoc
from bigdiff.runtime.files import sync
from bigdiff.runtime.world import World

SLICE: Final = 1 << 24  # elements that are summed together: 8 bytes each, and 4 for each width tracked
WORST: Final = 0.1  # error of a profile beyond which a width counts as not reconstructed


def save(run: Path, world: World, content: Content) -> Path:
    """Store `content.tensors`, power-function averages, as of `content.state`; collective, returns when it is done.

    Raises:
        RunError: on all ranks, when one of them cannot write.
    """
    final = layout.snapshot(run, content.state.step)
    aside = layout.aside(final, layout.WRITING, world.first_says(f"{time.time_ns()}"))
    files: list[File] = []

    def share() -> None:
        aside.mkdir(parents=True, exist_ok=True)
        files.append(vectors.write(aside / layout.shard(world.rank, world.size), _local(content)))

    def commit() -> None:
        if world.first:
            tables = [np.frombuffer(one, np.int64).reshape(-1, 3) for _, one in shares]
            _commit(aside, final, content, [file for file, _ in shares], index.packed(tables))

    _all(world, f"snapshot {final}", share)
    shares = world.gather((files[0], index.table(content.partition.pieces).tobytes()))
    _all(world, f"snapshot {final}", commit)
    return final


def _all(world: World, what: str, work: Callable[[], None]) -> None:
    """Do `work` on every rank and raise on all when it fails on one."""
    failed = ""
    try:
        work()
    except (OSError, RunError) as error:
        failed = f"{what} could not be stored: {error}"
    told = [sentence for sentence in world.gather(failed) if sentence]
    if told:
        raise RunError(f"{told[0]}; start again when it is mended")


@torch.no_grad()
def _local(content: Content) -> dict[str, torch.Tensor]:
    """This rank's averages on the CPU, flat, with zeros for padding: the same run gives the same bytes."""
    partition: Partition = content.partition
    padding = gaps(partition.pieces, partition.length)
    found: dict[str, torch.Tensor] = {}
    for name, parts in content.tensors.items():
        found[name] = torch.empty(partition.length)
        for mine, part in zip(partition.split(found[name]), parts, strict=True):
            mine.copy_(part.reshape(-1))
        for low, high in padding:
            found[name][low:high] = 0
    return found


def _commit(aside: Path, final: Path, content: Content, files: Sequence[File], pieces: bytes) -> None:
    written = Index(
        state=content.state,
        identity=content.identity,
        layout=content.partition.layout,
        vectors=tuple(content.tensors),
        files=tuple(files),
        pieces=index.write_pieces(aside, pieces),
        loss=None,
        about=content.about,
    )
    index.write(aside, written)
    _remove(final)
    aside.rename(final)
    sync(final.parent)


def forget(run: Path, step: int) -> None:
    """Delete the snapshots beyond `step`, from which the run goes on, and what a killed process left half written.

    For one process, before any rank stores another: what lies beyond belongs to a past that the run gave up.
    """
    for folder in layout.steps(layout.snapshots(run)):
        if layout.step_of(folder) > step:
            _remove(folder)
    for leftover in layout.snapshots(run).glob(f"{layout.WRITING}*"):
        shutil.rmtree(leftover, ignore_errors=True)  # best effort: a rank of an earlier life may still write to it


def _remove(folder: Path) -> None:
    (folder / layout.INDEX).unlink(missing_ok=True)  # first: what has no index is never read
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """An undamaged folder with power-function averages in it, and how many updates they had seen."""

    folder: Path
    index: Index
    time: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What was asked for: which stored vectors, each times a factor, it is the sum of, and what it is, in words."""

    terms: tuple[
        tuple[Path, Index, tuple[tuple[str, float], ...]], ...
    ]  # of each folder, the vectors' names and factors
    about: str

    def local(self, pieces: Sequence[Piece], length: int) -> torch.Tensor:
        """A rank's local vector fp32 [length] on the CPU; summed in float64, so many elements at a time.

        Raises:
            Damage: when a file is not there any more.
        """
        flat = torch.zeros(length)
        for begin in range(0, length, SLICE):
            end = min(begin + SLICE, length)
            part, inside = torch.zeros(end - begin, dtype=torch.float64), _within(pieces, begin, end)
            for folder, found, factors in self.terms:
                stored = reader.local_vectors(folder, found, [name for name, _ in factors], inside, end - begin)
                for name, factor in factors:
                    part.add_(stored[name], alpha=factor)
            flat[begin:end] = part
        return flat

    def named(self) -> dict[str, torch.Tensor]:
        """All weights by name ("unet.conv_in.weight"), fp32 on the CPU."""
        _, found, _ = self.terms[-1]
        return named(found.layout, self.local([Piece(local=0, start=0, length=found.total)], found.total))


def _within(pieces: Sequence[Piece], begin: int, end: int) -> list[Piece]:
    """The parts of `pieces` in [begin, end) of the local vector, as pieces of that part alone."""
    cut = [(max(piece.local, begin), min(piece.local + piece.length, end), piece) for piece in pieces]
    return [
        Piece(local=low - begin, start=piece.start + low - piece.local, length=high - low)
        for low, high, piece in cut
        if low < high
    ]


def asked(run: Path, checkpoint: Path, which: str) -> Made:
    """The weights of `checkpoint`, undamaged, that `which` names; "sigma=0.08" is made of what `run` stored.

    Raises:
        UsageError: when it does not hold them, or they cannot be reconstructed from what there is.
    """
    width, found = averages.width(which), reader.read_index(checkpoint)
    if width is not None:
        return _reconstructed(run, checkpoint, found, width)
    name = averages.held(which, tuple(began(found.about)), str(checkpoint))
    stored = MASTER if name == averages.RAW else name
    return Made(terms=((checkpoint, found, ((stored, 1.0),)),), about=averages.described(name))


def _reconstructed(run: Path, checkpoint: Path, last: Index, width: float) -> Made:
    tracked = [name for name in began(last.about) if averages.tracked_width(name) is not None]
    if not tracked:
        raise UsageError(f"sigma={width}: {checkpoint} holds no power-function averages; ema.power tracks them")
    now = last.state.updates - began(last.about)[tracked[0]]
    if now < 1:
        raise UsageError(f"sigma={width}: the power-function averages of {checkpoint} have seen no update yet")
    found, broken = _stored(run, last, tracked)
    found.append(_Stored(folder=checkpoint, index=last, time=now))
    widths = [averages.tracked_width(name) or 0.0 for name in tracked]
    mixed = posthoc.mixture([posthoc.Snapshot(time=one.time, width=w) for one in found for w in widths], now, width)
    source = f"{len(found)} stored times of {', '.join(tracked)}"
    if mixed.error > WORST:
        raise UsageError(
            f"sigma={width} cannot be reconstructed from {source}: its profile would be {mixed.error:.0%} off; take a "
            f"width nearer to these"
        )
    factors = np.reshape(mixed.factors, (len(found), len(tracked))).tolist()
    about = f"{averages.described(averages.power_name(width))}, reconstructed from {source}"
    return Made(
        terms=tuple(
            (one.folder, one.index, tuple(zip(tracked, row, strict=True)))
            for one, row in zip(found, factors, strict=True)
        ),
        about="; ".join([f"{about} (profile {mixed.error:.2%} off)", *broken]),
    )


def _stored(run: Path, last: Index, tracked: Sequence[str]) -> tuple[list[_Stored], list[str]]:
    """The run's snapshots before the checkpoint of index `last`, and a line about each that is damaged."""
    found: dict[int, _Stored] = {}
    broken = []
    origin = began(last.about)[tracked[0]]
    for folder in layout.steps(layout.snapshots(run)):
        damage = reader.damaged(folder)
        if damage:
            broken.append(f"{folder} is damaged ({damage}) and left out")
            continue
        one = index.read(folder)
        time = one.state.updates - origin
        # others are of averages that began at another update, or of another network
        same = all(began(one.about).get(name) == origin for name in tracked) and one.layout == last.layout
        if same and 0 < time < last.state.updates - origin and one.state.step < last.state.step:
            found[time] = _Stored(folder=folder, index=one, time=time)  # after a skipped step they are as before it
    return list(found.values()), broken
