"""What networks see in a set of pictures, block by block, each block a file: any process makes any block, once.

A block is pictures [begin, end) of the set. Its file is written whole, so that a second start makes only what is not
there, on whatever number of processes, and a larger set goes on where a smaller one ended.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigdiff.config.errors import RunError
from bigdiff.config.evaluation import BLOCK, Judges
from bigdiff.evaluate import networks, pictures
from bigdiff.evaluate.frechet import Gaussian, Sums, over_all
from bigdiff.evaluate.pictures import Source
from bigdiff.runtime.files import remove_leftovers, replacing
from bigdiff.runtime.workers import Workers
from bigdiff.runtime.world import World

_LATE: Final = 120.0  # seconds that a network file system may hide another node's file


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One block, for any process."""

    folder: Path
    source: Source
    judges: Judges
    begin: int
    end: int
    keep: Path | None = None  # folder for the pictures themselves


def cut(count: int) -> list[tuple[int, int]]:
    """[begin, end) of the blocks of `count` pictures."""
    return [(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK)]


def file(folder: Path, begin: int, end: int) -> Path:
    """Of a block."""
    return folder / f"{begin:08d}-{end:08d}.safetensors"


def make(works: Sequence[Work], world: World, workers: Workers, title: str) -> None:
    """Make the blocks that are not there, this process its share of them; collective, but does not wait for others.

    Raises:
        UsageError: for pictures or weights that cannot be used.
    """
    if not works:
        return
    folder = works[0].folder
    if world.first:
        remove_leftovers(folder)
    # decided once, so that processes that look at different times share the same rest
    missing = world.first_says(
        [number for number, one in enumerate(works) if not file(folder, one.begin, one.end).exists()]
    )
    mine = [works[number] for number in missing[world.rank :: world.size]]
    deque(workers.each(compute, mine, title), maxlen=0)


def compute(work: Work) -> int:
    """Get the pictures of a block, show them to the networks, store what those see; how many there were."""
    source = pictures.opened(work.source)
    some, captions = source.some(work.begin, work.end), source.captions(work.begin, work.end)
    found = networks.loaded(work.judges).of(some, captions)
    if work.keep is not None:
        for number, picture in enumerate(some, work.begin):
            with replacing(work.keep / f"{number:08d}.png") as temporary:
                picture.save(temporary, "PNG")
    with replacing(file(work.folder, work.begin, work.end)) as temporary:
        save_file({name: values.contiguous() for name, values in found.items()}, temporary)
    return len(some)


def read(folder: Path, name: str, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The features `name` of the blocks at `spans`, one after another: [N, D] or [N].

    Raises:
        RunError: when a file is not there, damaged, or lacks them.
    """
    parts = []
    for begin, end in spans:
        path = file(folder, begin, end)
        _await(path)
        try:
            found = load_file(path).get(name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is damaged ({error}): delete it, and start again to make it anew") from error
        if found is None or len(found) != end - begin:
            raise RunError(f"{path} does not hold {name} of {end - begin} pictures: delete it, and start again")
        parts.append(found)
    return torch.cat(parts)


def gaussian(folder: Path, name: str, spans: Sequence[tuple[int, int]], world: World) -> Gaussian:
    """Mean and covariance of the features `name` of all blocks; collective: each process sums its share of them."""
    sums: Sums | None = None
    for span in spans[world.rank :: world.size]:
        part = Sums.of(read(folder, name, [span]).to(world.device))
        sums = part if sums is None else sums + part
    # a process without a share learns the width from the others
    width = max(world.gather(0 if sums is None else len(sums.first)))
    return over_all(Sums.none(width, world.device) if sums is None else sums, world).gaussian()


def _await(path: Path) -> None:
    patience = time.monotonic() + _LATE
    while not path.exists():
        if time.monotonic() > patience:
            raise RunError(f"{path} was made by another process and is not seen here: is the folder shared by all?")
        time.sleep(0.2)
