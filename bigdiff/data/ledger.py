"""The ledger of what was consumed: one append-only file per rank and start; bigdiff.data.pages reads it.

    <run>/audit/<start>/rank-00003-of-00008.ledger

    file          frame ...                                     all numbers little endian, nothing padded
    frame         uint32 crc32 of all that follows in the frame, uint32 bytes of the body, body
    body          "H" and JSON: the header, first in every file
                  "R", uint8 code, UTF-8 text: names a reason, in front of its first use
                  "S", uint64 step, uint16 runs, uint32 substitutions, run ..., substitution ...
                  "W", uint64 begin, uint64 end, UTF-8 reason: steps [begin, end), the last of them just recorded,
                       moved no weights
    run           uint64 position, uint32 micro, uint32 batches, uint64 digest
    substitution  uint64 position, uint16 source, uint32 shard, uint32 row, uint8 reason

A run is a row of equal micro-batches that lie end to end; its digest is the xxh3_64 of their digests (uint64 each).
So a step costs 47 bytes, whatever the accumulation, and 19 more for each sample that could not be used.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time_ns
from typing import Any, Final, Literal

import numpy as np
import xxhash

from bigdiff.config.errors import RunError
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.runtime.files import sync

FORMAT: Final = 2  # 1 had no windows of steps that moved no weights, and is read, too
FOLDER: Final = "audit"  # in the run's folder
RUN: Final = np.dtype([("position", "<u8"), ("micro", "<u4"), ("batches", "<u4"), ("digest", "<u8")])
SUBSTITUTION: Final = np.dtype(
    [("position", "<u8"), ("source", "<u2"), ("shard", "<u4"), ("row", "<u4"), ("reason", "u1")]
)
FRAME: Final = struct.Struct("<II")
STEP: Final = struct.Struct("<cQHI")
RUN_PACKED: Final = struct.Struct("<QIIQ")
SUBSTITUTION_PACKED: Final = struct.Struct("<QHIIB")
LENGTH: Final = struct.Struct("<I")
WINDOW: Final = struct.Struct("<cQQ")
OTHER: Final = 255  # the code of every reason beyond the first 255 of a file
LONGEST_TEXT: Final = 1 << 24  # bytes of a header; a longer one is damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A source of the run: enough to rebuild its part of the order from its manifest."""

    location: str  # a folder or a URL
    manifest: str  # sha256 of its manifest.json
    share: dict[str, Any]  # how it is mixed: proportion, repeat, upsample, until; plain JSON values


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a start of a run fixes; the same in the files of all its ranks, but for `rank`."""

    start: str  # of `new_start`, agreed among the ranks
    parent: str = ""  # the start that wrote the checkpoint this one resumed from; "" is the start before it
    step: int  # of that checkpoint: the first one that this start takes
    rank: int
    size: int  # processes
    fingerprint: str  # of the course
    total: int  # samples of a global batch
    seed: int
    window: int
    lanes: int
    kind: Literal["latents", "images"]
    inputs: tuple[Input, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Whose ledger it is: see the fields of Header."""

    start: str
    parent: str = ""
    step: int
    rank: int
    size: int


def header(course: Course, manifests: Sequence[str], kind: Literal["latents", "images"], place: Place) -> Header:
    """What a process writes in front of its records.

    `manifests` are the sha256 of the sources' manifests; a source's name must be its location.
    """
    return Header(
        start=place.start,
        parent=place.parent,
        step=place.step,
        rank=place.rank,
        size=place.size,
        fingerprint=course.fingerprint,
        total=course.total,
        seed=course.seed,
        window=course.window,
        lanes=course.lanes,
        kind=kind,
        inputs=tuple(
            Input(
                location=source.name if "://" in source.name else os.path.abspath(source.name),
                manifest=manifest,
                share={name: getattr(source, name) for name in ("proportion", "upsample", "repeat", "until")},
            )
            for source, manifest in zip(course.sources, manifests, strict=True)
        ),
    )


def new_start(run: Path) -> str:
    """A name for a start of `run` that sorts behind all earlier ones, whatever this machine's clock says.

    Rank 0 draws it before it looks for a checkpoint and tells the others. The random end keeps two apart that are
    drawn at the same time, when a lost job still runs.
    """
    newest = max((int(name.partition("-")[0]) for name in starts(run)), default=0)
    return f"{max(time_ns(), newest + 1):020d}-{os.urandom(4).hex()}"


def starts(run: Path) -> list[str]:
    """The names of a run's starts in the order of time."""
    return sorted(
        path.name for path in (run / FOLDER).glob("*-*") if path.is_dir() and path.name.partition("-")[0].isdigit()
    )


def file_name(rank: int, size: int) -> str:
    """Of one rank's ledger."""
    return f"rank-{rank:05d}-of-{size:05d}.ledger"


class Ledger:
    """The open ledger of this rank and start. Every record is in the kernel when `write` returns: a kill loses none."""

    def __init__(self, run: Path, header: Header) -> None:
        self.file = run / FOLDER / header.start / file_name(header.rank, header.size)
        self._reasons: dict[str, int] = {}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = os.open(
                self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
        except FileExistsError:
            raise RunError(f"{self.file} exists: two processes take themselves for rank {header.rank}") from None
        text = json.dumps({"format": FORMAT, **asdict(header)}, sort_keys=True)
        self._append(_framed(b"H" + text.encode()))
        sync(self.file.parent)

    def write(self, step: int, batches: Sequence[Consumed]) -> None:
        """Record the micro-batches of an optimizer step that has been applied.

        Raises:
            RunError: when the file cannot be written (a full disk): without it the run could not be proven.
        """
        runs = list(_runs(batches))
        unusable = [item for batch in batches for item in batch.substituted]
        names = b"".join(self._new_reason(item.reason) for item in unusable)
        parts = [STEP.pack(b"S", step, len(runs), len(unusable)), *runs]
        parts += [self._packed(item) for item in unusable]
        self._append(names + _framed(b"".join(parts)))

    def skip(self, begin: int, end: int, reason: str) -> None:
        """Record that steps [begin, end), the last of which was written just now, moved no weights.

        It holds as long as that last step does: when a later start resumes before it, both are forgotten together.
        """
        self._append(_framed(WINDOW.pack(b"W", begin, end) + reason.encode()[:200]))

    def sync(self) -> None:
        """Bring what was written to the disk itself; called before a checkpoint counts."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close; more than once is harmless."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.fsync(descriptor)
            os.close(descriptor)

    def _new_reason(self, reason: str) -> bytes:
        kind = _kind(reason)
        if kind in self._reasons or len(self._reasons) == OTHER:
            return b""
        self._reasons[kind] = len(self._reasons)
        return _framed(b"R" + bytes([self._reasons[kind]]) + kind.encode())

    def _packed(self, item: Substitution) -> bytes:
        code = self._reasons.get(_kind(item.reason), OTHER)
        return SUBSTITUTION_PACKED.pack(item.position, item.source, item.shard, item.row, code)

    def _append(self, frame: bytes) -> None:
        left = memoryview(frame)
        try:
            while left:  # one call but on a nearly full disk
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise RunError(f"cannot write {self.file}: {error.strerror}") from error


def _kind(reason: str) -> str:
    # "index: offset 12 is ..." is one of many of its kind; the details are in the log
    return reason.partition(":")[0][:200]


def _framed(body: bytes) -> bytes:
    rest = LENGTH.pack(len(body)) + body
    return LENGTH.pack(zlib.crc32(rest)) + rest


def _runs(batches: Sequence[Consumed]) -> Iterator[bytes]:
    at = 0
    while at < len(batches):
        first, last = batches[at], at + 1
        while (
            last < len(batches)
            and batches[last].samples == first.samples
            and batches[last].position == first.position + (last - at) * first.samples
        ):
            last += 1
        digest = combined([batch.digest for batch in batches[at:last]])
        yield RUN_PACKED.pack(first.position, first.samples, last - at, digest)
        at = last


def combined(digests: Sequence[int]) -> int:
    """The digest of a run from those of its micro-batches."""
    return xxhash.xxh3_64_intdigest(struct.pack(f"<{len(digests)}Q", *digests))
