"""A toy run for ranks of the checkpoint tests: weights that are a function of name, place and step, and its partitions.

Imported by the processes that tests/checkpoint/conftest.py forks.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from bigdiff.checkpoint import reader
from bigdiff.checkpoint.content import Content, Saved
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.schema import Checkpoint
from bigdiff.engine.partition import Partition, Piece, dense, merged, owned
from bigdiff.runtime.world import World, enter

NAMES = ("exp_avg", "exp_avg_sq", "ema/0.9")
SHAPES = {"a": (3, 5), "b": (8,), "scale": (), "c": (7, 11), "d": (1,), "e": (16, 3)}
TOTAL = 4  # samples of a global batch


def flat(name: str, total: int, step: int) -> torch.Tensor:
    """The whole vector `name` at `step`: whole numbers below 2^24, so fp32 holds them."""
    salt = ("master", *NAMES).index(name) * 1_000_003 + step * 7_919
    return ((torch.arange(total, dtype=torch.int64) * 7 + salt) % 16_777_213).float()


def partition(kind: str, rank: int, size: int, shapes: dict[str, tuple[int, ...]]) -> Partition:
    """What `rank` owns under ZeRO-0 ("even"), 1 and 2 ("flat", in another order) or 3 ("scattered"); all of it NaN."""
    layout = dense(shapes.items())
    total = layout[-1].offset + layout[-1].size
    if kind == "even":
        low, high = total * rank // size, total * (rank + 1) // size
        pieces, lengths = owned(layout, [one.offset for one in layout], low, high), [high - low]
    elif kind == "flat":
        offsets, at = {}, 0
        for one in reversed(layout):
            offsets[one.name], at = at, at + one.size
        share = -(-(at + 1) // size)  # some padding everywhere
        pieces = owned(layout, [offsets[one.name] for one in layout], rank * share, (rank + 1) * share)
        lengths = [share]
    else:
        shares = [-(-one.size // size) for one in layout]
        found, local = [], 0
        for one, share in zip(layout, shares, strict=True):
            begin, end = min(rank * share, one.size), min((rank + 1) * share, one.size)
            if begin < end:
                found.append(Piece(local=local, start=one.offset + begin, length=end - begin))
            local += share
        half = len(shares) // 2
        pieces, lengths = tuple(merged(found)), [sum(shares[:half]), sum(shares[half:])]
    masters = tuple(torch.full((length,), torch.nan) for length in lengths)
    return Partition(layout=layout, pieces=pieces, masters=masters)


def fill(owned: Partition, tensors: tuple[torch.Tensor, ...], name: str, step: int) -> None:
    """Put this rank's part of the vector into tensors aligned with the masters."""
    whole, local = flat(name, owned.total, step), torch.cat(tensors)
    for piece in owned.pieces:
        local[piece.local : piece.local + piece.length] = whole[piece.start : piece.start + piece.length]
    for mine, part in zip(tensors, owned.split(local), strict=True):
        mine.copy_(part)


class Toy:
    """One rank of a run that has weights and moments but no training."""

    def __init__(self, run: Path, kind: str, world: World, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        self.run, self.world = run, world
        self.partition = partition(kind, world.rank, world.size, shapes)
        self.tensors = {
            name: tuple(torch.full_like(one, torch.nan) for one in self.partition.masters) for name in NAMES
        }

    def writer(self, **rules: object) -> CheckpointWriter:
        return CheckpointWriter(self.run, self.world, self.partition, NAMES, Checkpoint(**rules))  # type: ignore[arg-type]

    def content(self, step: int, loss: float | None = None) -> Content:
        """The state at `step`: the tensors are set to it, in place as an engine does."""
        fill(self.partition, self.partition.masters, "master", step)
        for name, tensors in self.tensors.items():
            fill(self.partition, tensors, name, step)
        return Content(
            partition=self.partition,
            tensors=dict(self.tensors),
            state=TrainState(step=step, samples_seen=TOTAL * step),
            identity=Identity(seed=1, manifest="m", total=TOTAL, order="o"),
            about={"averages": '{"ema/0.9": 0}', "process": str(os.getpid())},
            loss=loss,
        )

    def load(self, told: list[str]) -> Saved | None:
        names = reader.Names(needed=("master", "exp_avg", "exp_avg_sq"), welcome=("ema/0.9", "ema/0.5"))
        return reader.load(self.run, self.world, self.partition, names, told.append)

    def wrong(self, saved: Saved) -> str:
        """What is not as it was at the saved step; "" when all is."""
        for name in ("master", *NAMES):
            whole, mine = flat(name, self.partition.total, saved.state.step), saved.vectors[name]
            covered = torch.zeros(self.partition.length, dtype=torch.bool)
            for piece in self.partition.pieces:
                part = slice(piece.local, piece.local + piece.length)
                covered[part] = True
                if not torch.equal(mine[part], whole[piece.start : piece.start + piece.length]):
                    return f"{name} at {piece}"
            if bool(mine[~covered].any()):
                return f"padding of {name}"
        return ""


def say(**told: object) -> None:
    """One line of JSON for the test."""
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


__all__ = ["NAMES", "SHAPES", "Path", "Toy", "enter", "flat", "say", "sys", "time"]
