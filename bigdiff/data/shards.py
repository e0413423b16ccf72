"""The open shards of a set: a descriptor and an index each, few at a time, shared by the threads of a process."""

import errno
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import addressof
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data.arena import Arena, Kept
from bigdiff.data.damage import TOMBSTONE, Tombstones
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.data.order import Ints
from bigdiff.data.preads import Place
from bigdiff.data.spans import Spans
from bigdiff.data.storage import Absent, Corrupt, Storage

Kind = type[np.int64] | type[np.uint64]
KINDS: tuple[Kind, ...] = (np.int64, np.int64, np.uint64)  # of offset, length and checksum
OPENERS = 8  # shards opened at once
SPARE_FILES = 256  # descriptors left to the rest of the process: sockets, logs, libraries


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A shard that is ready to be read, or why it is not. The views give Python integers, cheaper than numpy's."""

    descriptor: int
    offsets: memoryview  # int64 [rows]
    lengths: memoryview  # int64 [rows]
    checksums: memoryview  # uint64 [rows]
    dead: bytes  # [rows], 1 where it was taken down
    damage: str = ""  # of the shard as a whole: then there is no descriptor
    texts: Mapping[str, pa.Array] = field(default_factory=dict)  # Columns.texts, [rows] each
    kept: Kept | None = None  # where its samples are kept in memory
    place: Place = field(init=False, repr=False)
    address: int = field(init=False, repr=False)  # of `place`, for `preads`

    def __post_init__(self) -> None:
        place = Place(self.descriptor, self.offsets, self.checksums, self.dead, self.kept)
        object.__setattr__(self, "place", place)
        object.__setattr__(self, "address", addressof(place))

    def spans(self, rows: Ints, size: int) -> Spans:
        """Where the members of these rows lie in a tar of `size` bytes, but for those not to be read, or kept."""
        offsets, lengths = np.asarray(self.offsets)[rows], np.asarray(self.lengths)[rows]
        dead = np.frombuffer(self.dead, np.uint8)[rows]
        asked = (dead == 0) & (offsets >= 0) & (offsets < size) & (lengths > 0) & (self.descriptor >= 0)
        sound = np.flatnonzero(asked if self.kept is None else asked & ~self.kept.has(rows))
        return Spans(
            descriptors=np.full(len(sound), self.descriptor, np.int32),
            offsets=offsets[sound],
            lengths=np.minimum(lengths[sound], size - offsets[sound]),
        )


@dataclass(kw_only=True, slots=True)
class Slot:
    """A shard that is open, and who needs it."""

    opened: Opened
    readers: int = 0
    unwanted: bool = False
    sound: bool | None = None  # whether its bytes are the manifest's; None: not looked at
    proving: Lock = field(default_factory=Lock)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where a set's index keeps a member's place and checksum."""

    member: str  # the prefix, as "safetensors" or "jpg"
    texts: tuple[str, ...] = ()  # columns that batches show as they are, as "key" and "caption"

    @property
    def names(self) -> tuple[str, str, str]:
        """Offset, length and checksum."""
        return f"{self.member}_offset", f"{self.member}_length", f"{self.member}_xxh3"


@dataclass(kw_only=True)
class Shards:
    """Open shards of one set, by number; any thread may lease some. `keep_only` closes what is no longer needed."""

    storage: Storage
    manifest: Manifest
    columns: Columns
    tombstones: Tombstones
    arena: Arena | None = None  # keeps samples that were read
    _slots: dict[int, Slot] = field(default_factory=dict)
    _opening: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)
    _changed: Condition = field(init=False)

    def __post_init__(self) -> None:
        self._changed = Condition(self._lock)

    def name(self, shard: int) -> str:
        """Where the shard's tar is, for messages."""
        return f"{self.storage.location}/{self.manifest.shards[shard].name}.tar"

    @contextmanager
    def lease(self, shards: Iterable[int]) -> Iterator[dict[int, Opened]]:
        """The shards by number, open until the block ends; waits for those that are on their way."""
        held: dict[int, Slot] = {}
        try:
            self.acquire(shards, held)
            yield {shard: slot.opened for shard, slot in held.items()}
        finally:
            self.release(held)

    def acquire(self, shards: Iterable[int], held: dict[int, Slot]) -> None:
        """As `lease`, into `held`; whether it raises or not, `release` must follow."""
        with self._lock:
            missing = [shard for shard in shards if not self._hold(shard, held)]
        self._acquire_all(missing, held)

    def release(self, held: Mapping[int, Slot]) -> None:
        """Let go of what was acquired."""
        with self._lock:
            for shard, slot in held.items():
                slot.readers -= 1
                if slot.unwanted and not slot.readers:
                    self._drop(shard, slot)

    def keep_only(self, wanted: Sequence[int]) -> None:
        """Close all other shards, those being read when their reading ends, and ask the storage for these."""
        keep = set(wanted)
        allow_files(len(keep))
        with self._lock:
            for shard, slot in list(self._slots.items()):
                slot.unwanted = shard not in keep
                if slot.unwanted and not slot.readers:
                    self._drop(shard, slot)
            missing = [self.manifest.shards[shard] for shard in wanted if shard not in self._slots]
        self.storage.want(missing)

    def close(self) -> None:
        """Close everything; no reading may be under way."""
        with self._lock:
            for shard, slot in list(self._slots.items()):
                self._drop(shard, slot)

    def _drop(self, shard: int, slot: Slot) -> None:
        if slot.opened.descriptor >= 0:
            os.close(slot.opened.descriptor)
        if self._slots.get(shard) is slot:
            del self._slots[shard]

    def recheck(self, shard: int, copy: object) -> bool:
        """After a bad sample of this copy: whether to read it again, of another one. A spoiled copy is given up.

        Also where the present one is sound: another thread or process may have given up the one that was read.
        """
        held: dict[int, Slot] = {}
        try:
            with self._lock:
                if not self._hold(shard, held):
                    return True
            slot = held[shard]
            if self._sound(shard, slot):
                return slot.opened is not copy
            with self._lock:
                slot.unwanted = True
                if self._slots.get(shard) is slot:
                    del self._slots[shard]
            return True
        finally:
            self.release(held)

    def _sound(self, shard: int, slot: Slot) -> bool:
        """Whoever asks while it is found out waits for the answer."""
        with slot.proving:
            if slot.sound is None:
                descriptor = slot.opened.descriptor
                slot.sound = descriptor < 0 or not self.storage.spoiled(self.manifest.shards[shard], descriptor)
            return slot.sound

    def _hold(self, shard: int, held: dict[int, Slot]) -> bool:
        slot = self._slots.get(shard)
        if slot is None:
            return False
        slot.readers += 1
        held[shard] = slot
        return True

    def _acquire_all(self, missing: Sequence[int], held: dict[int, Slot]) -> None:
        # side by side, because a remote shard costs a round trip for its index alone
        if len(missing) == 1:
            held[missing[0]] = self._acquire(missing[0])
        elif missing:
            with ThreadPoolExecutor(min(len(missing), OPENERS), thread_name_prefix="stream-open") as pool:
                opening = {shard: pool.submit(self._acquire, shard) for shard in missing}
                errors = []
                for shard, future in opening.items():
                    try:
                        held[shard] = future.result()
                    except (UsageError, RunError) as error:  # those that did open are given back with `held`
                        errors.append(error)
            if errors:
                raise errors[0]

    def _acquire(self, shard: int) -> Slot:
        with self._changed:
            while shard in self._opening:
                self._changed.wait()
            if shard in self._slots:
                slot = self._slots[shard]
                slot.readers += 1
                return slot
            self._opening.add(shard)
        try:
            opened = self._open(self.manifest.shards[shard])
        except BaseException:
            with self._changed:
                self._opening.discard(shard)
                self._changed.notify_all()
            raise
        with self._changed:
            slot = Slot(opened=opened, readers=1)
            self._slots[shard] = slot
            self._opening.discard(shard)
            self._changed.notify_all()
            return slot

    def _open(self, shard: Shard) -> Opened:
        try:
            index = self._index(shard)
            views = [_values(index, name, kind) for name, kind in zip(self.columns.names, KINDS, strict=True)]
            dead = self.tombstones.rows(index).tobytes()
            return Opened(
                descriptor=self.storage.open(shard),
                offsets=views[0],
                lengths=views[1],
                checksums=views[2],
                dead=dead,
                texts={name: index[name].combine_chunks() for name in self.columns.texts},
                kept=self.arena.kept(f"{self.storage.location}/{shard.name}", views[2]) if self.arena else None,
            )
        except (Absent, Corrupt) as error:
            return broken(shard.samples, f"{type(error).__name__.lower()}: {error}")

    def _index(self, shard: Shard) -> pa.Table:
        name = shard.name + self.manifest.index
        content = self.storage.read(name, shard.index_sha256)
        places = [*self.columns.names, *self.columns.texts]
        try:
            table = index_table(content, [*places, *(("key", "url", "sha256") if self.tombstones.entries else ())])
        except (pa.ArrowException, OSError) as error:
            raise Corrupt(f"its index {name} is not readable ({error})") from error
        missing = [column for column in places if column not in table.column_names]
        if missing:
            raise UsageError(
                f"{self.storage.location}/{name} has no column {missing[0]!r}: the set was made by an older version or "
                f"holds other members; make it again, or index it with python -m bigdiff.data.index"
            )
        if table.num_rows != shard.samples:
            raise Corrupt(f"its index {name} has {table.num_rows} rows, the manifest says {shard.samples}")
        return table


def index_table(content: bytes, columns: Sequence[str]) -> pa.Table:
    """Those of the columns that the parquet `content` has.

    By this thread alone: one of Arrow's may be the last to let go of `content`, which at the interpreter's end aborts.
    """
    file = pq.ParquetFile(pa.BufferReader(content))
    known = file.schema_arrow.names
    return file.read(columns=[name for name in dict.fromkeys(columns) if name in known], use_threads=False)


def broken(rows: int, damage: str) -> Opened:
    """A shard of which no sample can be read."""
    none = _view(np.zeros(rows, np.int64), np.int64)
    return Opened(
        descriptor=-1,
        offsets=none,
        lengths=none,
        checksums=_view(np.zeros(rows, np.uint64), np.uint64),
        dead=bytes(rows),
        damage=damage,
    )


def unusable(shard: Opened, row: int, read: int, length: int) -> str:
    """Why a sample cannot be used, of which `read` bytes of `length` came, or minus the system's error number.

    Raises:
        RunError: for an error that may be over in a minute, so that it is no property of the data.
    """
    if shard.damage:
        return shard.damage
    if shard.dead[row]:
        return TOMBSTONE
    if read < 0 and -read != errno.EIO:
        raise RunError(f"reading a shard failed ({os.strerror(-read)}): start again to go on from the last checkpoint")
    if read < 0:
        return f"unreadable: {os.strerror(-read)}"
    if read != length or shard.lengths[row] != length:
        return f"truncated: {min(read, shard.lengths[row])} of {length} bytes"
    return "bytes differ from the index's checksum"


def allow_files(count: int) -> None:
    """Raise this process's limit of open files as far as `count` shards need it.

    Raises:
        UsageError: when the system's hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(
            f"the windows of this process hold {count} shards open and the system allows {hard} files: "
            f"lower data.window or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _values(index: pa.Table, name: str, kind: Kind) -> memoryview:
    # out of Arrow's buffer: its own to_numpy imports pandas, 0.3 s of every process
    try:
        column = index[name].combine_chunks().cast(pa.from_numpy_dtype(kind))
    except pa.ArrowException as error:
        raise Corrupt(f"its index has no whole numbers in {name} ({error})") from error
    if column.null_count:
        raise Corrupt(f"its index has {column.null_count} rows without {name}")
    values = np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]
    return _view(values, kind)


def _view(array: npt.NDArray[np.integer[Any]], kind: Kind) -> memoryview:
    return np.ascontiguousarray(array, kind).data
