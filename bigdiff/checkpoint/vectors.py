"""One rank's vectors as a safetensors file: written in one pass with its checksum, compared, read by ranges.

The format is simple enough to be streamed from the buffers themselves (a length, a JSON header, the bytes). It is read
with `pread`, not mapped: a file that is cut or taken away while it is read is an error here, and would kill the process
through a mapping.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from bigdiff.checkpoint.index import Damage, File
from bigdiff.config.errors import RunError
from bigdiff.runtime.files import sync

CHUNK: Final = 1 << 24  # bytes written, hashed and compared at a time; the interpreter's lock is free meanwhile
HEADER: Final = 1 << 20  # bytes of a header that is believed
KINDS: Final = {torch.float32: "F32", torch.float16: "F16"}  # safetensors' names
_NUMBERS: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def size(vectors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the file that `write` makes."""
    return len(_header(vectors)) + sum(vector.nbytes for vector in vectors.values())


def write(path: Path, vectors: Mapping[str, torch.Tensor]) -> File:
    """Write flat CPU vectors (fp32 or fp16) to the new file `path`, bring it to the disk and compare it with them.

    The comparison reads the file once, from the disk where the kernel lets go of its copy.

    Raises:
        OSError: when it cannot be written.
        RunError: when the disk gives back something else.
    """
    digest, length = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for chunk in _chunks(vectors):
            digest.update(chunk)  # type: ignore[arg-type] # an array is a buffer
            left = chunk.data
            while left:
                left = left[os.write(descriptor, left) :]
            length += len(chunk)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        _compare(descriptor, path, vectors)
    finally:
        os.close(descriptor)
    sync(path.parent)
    return File(name=path.name, bytes=length, sha256=digest.hexdigest())


def _header(vectors: Mapping[str, torch.Tensor]) -> bytes:
    entries, at = {}, 0
    for name, vector in vectors.items():
        span = [at, at + vector.nbytes]
        entries[name] = {"dtype": KINDS[vector.dtype], "shape": [vector.numel()], "data_offsets": span}
        at = span[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the vectors are aligned
    return len(text).to_bytes(8, "little") + text


def _chunks(vectors: Mapping[str, torch.Tensor]) -> Iterator[Bytes]:
    parts = [vector.numpy().view(np.uint8) for vector in vectors.values()]
    for content in (np.frombuffer(_header(vectors), np.uint8), *parts):
        for begin in range(0, len(content), CHUNK):
            yield content[begin : begin + CHUNK]


def _compare(descriptor: int, path: Path, vectors: Mapping[str, torch.Tensor]) -> None:
    found, at = np.empty(CHUNK, np.uint8), 0
    for chunk in _chunks(vectors):
        part = found[: len(chunk)]
        if _fill(descriptor, part, at) < len(chunk) or not np.array_equal(part, chunk):
            raise RunError(f"{path} does not hold what was written to it, at byte {at} or behind: the disk is unsound")
        at += len(chunk)


def _fill(descriptor: int, target: Bytes, at: int) -> int:
    """Bytes that could be read."""
    got = 0
    while got < len(target):
        count = os.preadv(descriptor, [target.data[got:]], at + got)
        if count == 0:
            break
        got += count
    return got


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    """Elements of every vector of a file: `lengths` of them at `offsets` go to `places` of ours; int64 [ranges]."""

    places: Integers
    offsets: Integers
    lengths: Integers


def fetch(path: Path, targets: Mapping[str, torch.Tensor], ranges: Ranges) -> None:
    """Read `ranges` of every vector in `targets` (flat, fp32, CPU), and nothing else of the file.

    Raises:
        Damage: when the file is not there, is cut, or has no such vectors.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Damage(f"{path.name} cannot be read ({error.strerror})") from error
    try:
        held = _held(descriptor, path)
        for name, target in targets.items():
            if name not in held:
                raise Damage(f"{path.name} has no vector {name}")
            _copy(descriptor, held[name], ranges, target.numpy())
    except (OSError, EOFError) as error:
        raise Damage(f"{path.name} cannot be read ({error})") from error
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """Where a vector's numbers lie in the file (bytes)."""

    number: np.dtype[Any]
    begin: int
    end: int


def _copy(descriptor: int, held: _Held, ranges: Ranges, target: npt.NDArray[np.float32]) -> None:
    item, same = held.number.itemsize, held.number == target.dtype
    if len(ranges.lengths) and held.begin + item * int((ranges.offsets + ranges.lengths).max()) > held.end:
        raise EOFError("a vector is shorter than its pieces")
    columns = (ranges.places.tolist(), ranges.offsets.tolist(), ranges.lengths.tolist())
    for place, offset, length in zip(*columns, strict=True):
        part = target[place : place + length]
        found = part if same else np.empty(length, held.number)
        if _fill(descriptor, found.view(np.uint8), held.begin + item * offset) < item * length:
            raise EOFError("it was cut meanwhile")
        if not same:
            part[:] = found


def _held(descriptor: int, path: Path) -> dict[str, _Held]:
    start = np.zeros(8, np.uint8)
    length = int.from_bytes(start.tobytes(), "little") if _fill(descriptor, start, 0) == len(start) else 0
    text = np.zeros(min(length, HEADER), np.uint8)
    try:
        if not 0 < length <= HEADER or _fill(descriptor, text, len(start)) < length:
            raise ValueError("it has no header")
        return {
            name: _Held(
                number=_NUMBERS[entry["dtype"]],
                begin=8 + length + int(entry["data_offsets"][0]),
                end=8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in json.loads(text.tobytes()).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Damage(f"{path.name} is no file of vectors ({error})") from error
