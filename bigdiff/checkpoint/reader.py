"""Checkpoints read back: verified, by any number of ranks, no more than is asked for.

Every rank decides the same: each looks at its share of the files, and all hear of all that was found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bigdiff.checkpoint import index, layout, vectors
from bigdiff.checkpoint.content import MASTER, MOMENTS, Saved
from bigdiff.checkpoint.index import Damage, Index, Integers, Pieces
from bigdiff.checkpoint.vectors import Ranges
from bigdiff.config import averages
from bigdiff.config.errors import LastingError, UsageError
from bigdiff.engine.partition import Partition, Piece, named
from bigdiff.runtime.world import World

ATTEMPTS = 3  # at a list of checkpoints from which somebody else removes some


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Which vectors are read: `needed` must be there, `welcome` are read where they are."""

    needed: tuple[str, ...]
    welcome: tuple[str, ...] = ()


def load(run: Path, world: World, partition: Partition, names: Names, warn: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint of `run` that is undamaged, sliced for this rank; None when there is none; collective.

    A damaged one is passed over with a warning, from rank 0, that names the file.

    Raises:
        UsageError: on all ranks, when it is of another network or format, or lacks a vector that is needed.
        LastingError: on all ranks, when there are checkpoints and all are damaged.
    """
    refused: set[str] = set()
    for _ in range(ATTEMPTS):  # while they are looked at, an earlier life may still make some, and remove others
        listed = world.first_says([str(folder) for folder in layout.folders(run)] if world.first else [])
        if not listed and not refused:
            return None
        for name in listed:
            if name in refused:
                continue
            saved = _agreed(Path(name), world, partition, names, warn)
            if saved is not None:
                return saved
            refused.add(name)
    raise LastingError(f"no checkpoint in {layout.checkpoints(run)} is undamaged: delete the folder to start afresh")


def _agreed(
    folder: Path, world: World, partition: Partition, names: Names, warn: Callable[[str], None]
) -> Saved | None:
    """What `folder` holds for this rank, or None on all ranks when one of them finds it damaged."""
    saved, damage, refusal = None, "", ""
    for part in (_checked, _read):  # all files are verified before any is believed
        try:
            saved = part(folder, world, partition, names)
        except Damage as error:
            damage = str(error)
        except UsageError as error:
            refusal = str(error)
        told = world.gather((damage, refusal))
        for found, refused in told:
            if refused:
                raise UsageError(refused)
            if found:
                if world.first:
                    problem = f"is damaged ({found})" if folder.is_dir() else "was removed while it was read"
                    warn(f"checkpoint {folder} {problem}; the one before it is used")
                return None
    return saved


def _checked(folder: Path, world: World, partition: Partition, names: Names) -> None:
    found = index.read(folder)
    if found.layout != partition.layout:
        raise UsageError(f"{folder} holds another network than this stage's model: use another run folder")
    _demand(folder, found, names.needed)
    for file in found.files[world.rank :: world.size]:
        index.check(folder, file)


def _read(folder: Path, world: World, partition: Partition, names: Names) -> Saved:
    found = index.read(folder)
    wanted = [*names.needed, *(name for name in names.welcome if name in found.vectors)]
    return Saved(
        folder=folder,
        state=found.state,
        identity=found.identity,
        vectors=local_vectors(folder, found, wanted, partition.pieces, partition.length),
        about=found.about,
    )


def _demand(folder: Path, found: Index, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in found.vectors]
    if missing:
        raise UsageError(f"{folder} holds no {', '.join(missing)}, only {', '.join(found.vectors)}")


def damaged(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with every `parts`-th file of a checkpoint from `part` on; "" when these have their checksums.

    Raises:
        UsageError: when it is of another format.
    """
    try:
        found = index.read(folder)
        for file in (found.pieces, *found.files)[part::parts]:
            index.check(folder, file)
    except Damage as error:
        return str(error)
    return ""


def local_vectors(
    folder: Path, found: Index, names: Sequence[str], pieces: Sequence[Piece], length: int
) -> dict[str, torch.Tensor]:
    """The vectors `names` of a verified checkpoint as local ones, fp32 [length] on the CPU; zeros where no piece lies.

    Only the files, and of these only the ranges, that `pieces` need are read.

    Raises:
        Damage: when a file is not there any more, or is cut.
    """
    targets = {name: torch.zeros(length) for name in names}
    for number, ranges in overlaps(index.read_pieces(folder, found), pieces).items():
        vectors.fetch(folder / found.files[number].name, targets, ranges)
    return targets


def overlaps(stored: Pieces, wanted: Sequence[Piece]) -> dict[int, Ranges]:
    """What stored and wanted pieces have in common, by file, as the bytes lie in it; by bisection.

    Neighbours on both sides are joined: on the same number of ranks it is one range.
    """
    places, starts, lengths = (column for column in index.table(sorted(wanted, key=lambda one: one.start)).T)
    ends = starts + lengths
    first = np.searchsorted(stored.starts, starts, "right") - 1
    last = np.searchsorted(stored.starts, ends, "left")  # beyond
    mine = np.repeat(np.arange(len(starts)), last - first)
    begins = np.cumsum(last - first) - (last - first)
    theirs = np.arange(len(mine)) - begins[mine] + first[mine]
    low = np.maximum(starts[mine], stored.starts[theirs])
    high = np.minimum(ends[mine], stored.starts[theirs] + stored.lengths[theirs])
    found = (
        stored.files[theirs],
        places[mine] + low - starts[mine],
        stored.locals[theirs] + low - stored.starts[theirs],
        high - low,
    )
    order = np.lexsort((found[2], found[0]))
    return _joined(*(column[order] for column in found))


def _joined(files: Integers, places: Integers, offsets: Integers, lengths: Integers) -> dict[int, Ranges]:
    if not len(files):
        return {}
    follows = (
        (files[1:] == files[:-1])
        & (places[1:] == places[:-1] + lengths[:-1])
        & (offsets[1:] == offsets[:-1] + lengths[:-1])
    )
    heads = np.flatnonzero(np.append(True, ~follows))
    files, places, offsets = files[heads], places[heads], offsets[heads]
    lengths = np.add.reduceat(lengths, heads)
    numbers, begins = np.unique(files, return_index=True)
    parts = (np.split(column, begins[1:]) for column in (places, offsets, lengths))
    return {
        number: Ranges(places=places, offsets=offsets, lengths=lengths)
        for number, places, offsets, lengths in zip(numbers.tolist(), *parts, strict=True)
    }


class Damaged(UsageError):
    """A checkpoint that was named cannot be used, as it is damaged or gone; another one may be."""


def read_weights(folder: Path, which: str) -> dict[str, torch.Tensor]:
    """All trained weights of a checkpoint by name ("unet.conv_in.weight"), fp32 on the CPU.

    `which` is "raw", "ema" for the first average, or a vector's name, such as "ema/0.9999" or "exp_avg".

    Raises:
        Damaged: when the checkpoint is, or was removed while it was read.
        UsageError: when it does not hold these.
    """
    problem = damaged(folder)
    if problem:
        raise unusable(folder, problem)
    try:
        found = index.read(folder)
        name = _vector(folder, found, which)
        whole = Piece(local=0, start=0, length=found.total)
        flat = local_vectors(folder, found, [name], [whole], found.total)[name]
    except Damage as error:
        raise unusable(folder, str(error)) from error
    return {name: weight.clone() for name, weight in named(found.layout, flat).items()}


def unusable(folder: Path, problem: str) -> Damaged:
    """What to say of a checkpoint that was named and has this problem."""
    if not folder.is_dir():
        return Damaged(f"checkpoint {folder} is not there (any more): the run may have removed it for a newer one")
    return Damaged(f"checkpoint {folder} is damaged ({problem}): choose another one")


def _vector(folder: Path, found: Index, which: str) -> str:
    if which in found.vectors:
        return which
    tracked = tuple(name for name in found.vectors if name not in (MASTER, *MOMENTS))
    name = averages.held(which, tracked, str(folder))
    return MASTER if name == averages.RAW else name


def read_index(folder: Path) -> Index:
    """The index of a checkpoint folder.

    Raises:
        Damaged: when it is.
        UsageError: when it is of another format.
    """
    try:
        return index.read(folder)
    except Damage as error:
        raise unusable(folder, str(error)) from error
