"""Checkpoints that are whole or absent, and load on any number of ranks.

All trained weights form one flat vector (bigdiff.engine.partition). Each rank writes what it owns of the fp32 masters,
of AdamW's moments and of the EMA to one safetensors file, its pieces one behind the other; `index.json` says where each
parameter and each piece lies. A loader of another world size reads the ranges it needs, so nothing is converted. The
folder is written aside under a name of its own, synced and renamed: the newest folder whose files have their recorded
checksums is the checkpoint, whatever was killed when.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import RunError, UsageError
from bigdiff.engine.partition import Partition, Piece, dense, named
from bigdiff.runtime.files import sha256, sync, write_json
from bigdiff.runtime.world import World

FORMAT = 3  # 1 had no fingerprint of the data order, 2 had one slice per rank
MASTER, EMA = "master", "ema"
Which = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A verified checkpoint and what this rank owns of it."""

    folder: Path
    state: TrainState
    identity: Identity
    vectors: dict[str, torch.Tensor]  # master, exp_avg, exp_avg_sq, ema: local vectors, fp32 [partition.length]
    about: dict[str, str]  # as it was given to `save`


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What one rank puts into a checkpoint; `about` is plain text kept for the reader (config, versions)."""

    partition: Partition
    tensors: dict[str, Sequence[torch.Tensor]]  # beside the masters and aligned with them: exp_avg, exp_avg_sq, ema
    state: TrainState
    identity: Identity
    about: dict[str, str]


def save(run: Path, world: World, content: Content, keep: int) -> Path:
    """Write a checkpoint of `run`, collectively, and delete those beyond the newest `keep`."""
    final = layout.checkpoint(run, content.state.step)
    # a name of its own for each attempt: a rank of an earlier life of this job may still be writing
    token = world.first_says(f"writing-{final.name}-{time.time_ns()}")
    aside = final.with_name(token)
    if world.first:
        aside.mkdir(parents=True)
    world.barrier()
    files = world.gather(_write_slice(aside / layout.shard(world.rank, world.size), content))
    if world.first:
        _write_index(aside, content, files)
        if final.exists():  # a damaged one that was skipped on the way here
            shutil.rmtree(final)
        aside.rename(final)
        sync(final.parent)
        _retain(run, keep)
    world.barrier()
    return final


def _write_slice(path: Path, content: Content) -> dict[str, Any]:
    pieces = content.partition.pieces
    tensors = {MASTER: content.partition.masters, **content.tensors}
    save_file({name: _compact(parts, pieces) for name, parts in tensors.items()}, path)
    sync(path)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "pieces": [[piece.start, piece.length] for piece in pieces],  # of the flat vector, in the order of the file
    }


def _compact(parts: Sequence[torch.Tensor], pieces: Sequence[Piece]) -> torch.Tensor:
    """The pieces of a local vector one behind the other, on the CPU, without the padding."""
    local = torch.cat([part.detach().reshape(-1).cpu() for part in parts])
    return torch.cat([local[:0], *(local[piece.local : piece.local + piece.length] for piece in pieces)])


def _write_index(folder: Path, content: Content, files: list[dict[str, Any]]) -> None:
    index = {
        "format": FORMAT,
        "state": asdict(content.state),
        "identity": asdict(content.identity),
        "total": content.partition.total,
        "layout": [[placed.name, list(placed.shape), placed.offset] for placed in content.partition.layout],
        "files": files,
        "about": content.about,
    }
    write_json(folder / layout.INDEX, index)


def _retain(run: Path, keep: int) -> None:
    for old in layout.superseded(layout.saved(run), keep):
        shutil.rmtree(old)
    for leftover in layout.checkpoints(run).glob("writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # best effort: an earlier life may still hold a file in it


def load(run: Path, world: World, partition: Partition, warn: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint of `run` that is undamaged, sliced for this rank; None when there is none.

    A damaged one is skipped with a warning that names the file; every rank decides the same.

    Raises:
        UsageError: when the network of the checkpoint is not the one being trained.
    """
    folders = world.first_says([str(folder) for folder in layout.saved(run)])
    for folder in map(Path, folders):
        damage = next((found for found in world.gather(damaged(folder, world.rank, world.size)) if found), "")
        if damage:
            warn(f"checkpoint {folder} is damaged ({damage}); the one before it is used")
            continue
        index = read_index(folder)
        mine = [[placed.name, list(placed.shape), placed.offset] for placed in partition.layout]
        if index["layout"] != mine:
            raise UsageError(f"{folder} holds another network than this stage's model: use another run folder")
        return Saved(
            folder=folder,
            state=TrainState(**index["state"]),
            identity=Identity(**index["identity"]),
            vectors=read_pieces(folder, index, partition.pieces, partition.length),
            about=index["about"],
        )
    if folders:
        raise RunError(f"no checkpoint in {layout.checkpoints(run)} is undamaged: delete the folder to start afresh")
    return None


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint folder.

    Raises:
        UsageError: when it is absent, unreadable or of another format.
    """
    file = folder / layout.INDEX
    try:
        index: dict[str, Any] = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{folder} is not a checkpoint: {file.name} cannot be read ({error})") from error
    if index.get("format") != FORMAT:
        raise UsageError(
            f"{file} has format {index.get('format')!r}, this version reads {FORMAT}: train that stage again"
        )
    return index


def damaged(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with every `parts`-th file of a checkpoint from `part` on; "" when all have their checksums."""
    try:
        files = read_index(folder)["files"]
    except UsageError as error:
        return str(error)
    for file in files[part::parts]:
        path = folder / file["name"]
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != file["bytes"]:
            return f"{path.name} has {path.stat().st_size} bytes instead of {file['bytes']}"
        if sha256(path) != file["sha256"]:
            return f"{path.name} does not have its recorded sha256"
    return ""


def read_pieces(folder: Path, index: dict[str, Any], pieces: Sequence[Piece], length: int) -> dict[str, torch.Tensor]:
    """Local vectors fp32 [length] on the CPU, of every name in a checkpoint; zeros where no piece lies."""
    vectors: dict[str, torch.Tensor] = {}
    for file in index["files"]:
        wanted, at = [], 0  # (in the local vector, in the file, elements)
        for start, size in file["pieces"]:
            for piece in pieces:
                low, high = max(start, piece.start), min(start + size, piece.start + piece.length)
                if low < high:
                    wanted.append((piece.local + low - piece.start, at + low - start, high - low))
            at += size
        if not wanted:
            continue
        with safe_open(folder / file["name"], framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
                vector, held = vectors.setdefault(name, torch.zeros(length)), stored.get_slice(name)
                for local, offset, count in wanted:
                    vector[local : local + count] = held[offset : offset + count]
    return vectors


def read_weights(folder: Path, which: Which) -> dict[str, torch.Tensor]:
    """All trained weights of a checkpoint by name ("unet.conv_in.weight"), fp32 on the CPU: the EMA or the raw masters.

    Raises:
        UsageError: when the checkpoint is damaged.
    """
    damage = damaged(folder)
    if damage:
        raise UsageError(f"checkpoint {folder} is damaged ({damage}): choose another one")
    index = read_index(folder)
    places = dense((name, shape) for name, shape, _ in index["layout"])
    whole = Piece(local=0, start=0, length=index["total"])
    flat = read_pieces(folder, index, [whole], index["total"])[MASTER if which == "raw" else EMA]
    return {name: weight.clone() for name, weight in named(places, flat).items()}
