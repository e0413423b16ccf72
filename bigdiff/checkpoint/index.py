"""A checkpoint's index: what lies in which file, with a checksum of every file and of itself.

index.json              state, identity, layout of the parameters, names of the vectors, files; its own sha256
pieces.safetensors      which ranges of the flat vector each rank's file holds (bigdiff.engine.partition)
rank-*.safetensors      each rank's local vectors
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import UsageError
from bigdiff.engine.partition import Piece, Placed
from bigdiff.runtime.files import sha256, write_bytes

FORMAT = 3  # 1 had no fingerprint of the data order, 2 had one slice per rank
_OLDER = (1, 2)
_COLUMNS = ("locals", "starts", "lengths")
Integers = npt.NDArray[np.int64]


class Damage(Exception):
    """A checkpoint is not what was written, or is not there any more; the text names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a checkpoint as it must be."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """All of a checkpoint but the vectors themselves."""

    state: TrainState
    identity: Identity
    layout: tuple[Placed, ...]
    vectors: tuple[str, ...]  # names, in the order in which they were given
    files: tuple[File, ...]  # of the ranks, in their order
    pieces: File
    loss: float | None  # mean training loss since the checkpoint before
    about: dict[str, str]

    @property
    def total(self) -> int:
        """Elements of the flat vector."""
        return self.layout[-1].offset + self.layout[-1].size


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """All ranks' pieces, ascending in `starts`, without gaps: int64 [pieces] each."""

    files: Integers  # rank that wrote them
    locals: Integers  # where each begins in that rank's local vector
    starts: Integers  # where it begins in the flat one
    lengths: Integers


def write(folder: Path, index: Index) -> None:
    """Write the index of a folder whose files are all there."""
    plain = {
        "format": FORMAT,
        "state": index.state.as_json(),
        "identity": asdict(index.identity),
        "layout": [[placed.name, list(placed.shape)] for placed in index.layout],
        "vectors": list(index.vectors),
        "files": [asdict(file) for file in index.files],
        "pieces": asdict(index.pieces),
        "loss": index.loss,
        "about": index.about,
    }
    lines = [f"{json.dumps(key)}: {_canonical(value)}" for key, value in {**plain, "sha256": _digest(plain)}.items()]
    write_bytes(folder / layout.INDEX, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read(folder: Path) -> Index:
    """The index of a checkpoint folder.

    Raises:
        Damage: when it is absent or not as it was written.
        UsageError: when it is of another format.
    """
    file = folder / layout.INDEX
    try:
        plain = json.loads(file.read_bytes())
        number, digest = plain["format"], plain.pop("sha256", "")
    except FileNotFoundError:
        raise Damage(f"{file.name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damage(f"{file.name} cannot be read ({error})") from error
    if number in _OLDER and not digest:
        raise UsageError(
            f"{folder} has format {number} of an earlier version, this one reads {FORMAT}: train that stage again"
        )
    if digest != _digest(plain):
        raise Damage(f"{file.name} does not have its recorded sha256")
    if number != FORMAT:
        raise UsageError(f"{folder} has format {number}, this version reads {FORMAT}: use the version that wrote it")
    return _parsed(plain)


def _parsed(plain: dict[str, Any]) -> Index:
    places, offset = [], 0
    for name, shape in plain["layout"]:
        places.append(Placed(name=name, shape=tuple(shape), offset=offset))
        offset += places[-1].size
    return Index(
        state=TrainState.from_json(plain["state"]),
        identity=Identity(**plain["identity"]),
        layout=tuple(places),
        vectors=tuple(plain["vectors"]),
        files=tuple(File(**file) for file in plain["files"]),
        pieces=File(**plain["pieces"]),
        loss=plain["loss"],
        about=plain["about"],
    )


def _canonical(value: Any) -> str:  # noqa: ANN401 (whatever json takes)
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(plain).encode()).hexdigest()


def check(folder: Path, file: File) -> None:
    """Compare a file's bytes with what the index says.

    Raises:
        Damage: naming the file and what is wrong with it.
    """
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise Damage(f"{file.name} has {size} bytes instead of {file.bytes}")
        if sha256(path) != file.sha256:
            raise Damage(f"{file.name} does not have its recorded sha256")
    except FileNotFoundError:
        raise Damage(f"{file.name} is missing") from None
    except OSError as error:
        raise Damage(f"{file.name} cannot be read ({error.strerror})") from error


def table(pieces: Sequence[Piece]) -> Integers:
    """One rank's pieces as int64 [pieces, 3], small enough to be told to others."""
    return np.array([(piece.local, piece.start, piece.length) for piece in pieces], np.int64).reshape(-1, 3)


def packed(tables: Sequence[Integers]) -> bytes:
    """The `table` of every rank as the content of `pieces.safetensors`."""
    columns = {name: np.concatenate([one[:, place] for one in tables]) for place, name in enumerate(_COLUMNS)}
    counts = np.array([len(one) for one in tables], np.int64)
    content: bytes = safetensors.numpy.save({"counts": counts, **columns})
    return content


def write_pieces(folder: Path, content: bytes) -> File:
    """Write what `packed` made."""
    write_bytes(folder / layout.PIECES, content)
    return File(name=layout.PIECES, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_pieces(folder: Path, index: Index) -> Pieces:
    """Where each range of the flat vector lies.

    Raises:
        Damage: when the file is not as it was written, or its pieces are not the whole vector once.
    """
    name = index.pieces.name
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise Damage(f"{name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != index.pieces.sha256:
        raise Damage(f"{name} does not have its recorded sha256")
    tensors = safetensors.numpy.load(content)
    order = np.argsort(tensors["starts"], kind="stable")
    found = Pieces(
        files=np.repeat(np.arange(len(index.files)), tensors["counts"])[order],
        locals=tensors["locals"][order],
        starts=tensors["starts"][order],
        lengths=tensors["lengths"][order],
    )
    ends = found.starts + found.lengths
    if not np.array_equal(found.starts, np.append(0, ends[:-1])) or int(ends[-1]) != index.total:
        raise Damage(f"{name} does not cover every weight once")
    return found
