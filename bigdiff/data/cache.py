"""A bounded folder of whole shards on a node's own disk, shared by all processes of the node without a server.

All agreement is by flock, which the kernel takes back from a killed process:
* `lock`: held for milliseconds while the folder is counted and changed;
* SHA256.part, a shard being fetched, of full size from the start: its fetcher holds it exclusively; unheld it is dead;
* SHA256.tar, a whole verified shard: each reader's descriptor holds it shared; what can be held exclusively is unused;
* PID-N.wish, what a process will need, in order: its writer holds it; unheld it is dead.
A file gets its final name after its checksum was found right and its bytes were synced, so it is trusted from then on,
also by later runs and after a crash of the node, without hashing it again (0.6 s a GB; the sync costs nothing that the
disk would not have to do anyway). Names are checksums: a replaced set finds none of its old bytes, and sets may share a
cache.
Eviction takes what nobody uses: first what no living process wishes for, the oldest use first. Only for a shard that a
reader waits for, it then takes what is wished for latest. So reading ahead never drives out what is needed sooner.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, Literal

from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.data.manifest import Shard

_PART, _WHOLE, _SMALL, _WISH = ".part", ".tar", ".small", ".wish"
_KEY = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[0-9a-f]{64}\.(part|tar|small)")  # anything else in the folder is not ours
_LOCK_SECONDS: Final = 60.0
_numbers = count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Where a node keeps shards of remote sets, and how they are fetched."""

    folder: str  # on the node's own disk (flock)
    bytes: int  # bound of all files in it, those on their way at full size
    threads: int = 8  # shards that one process fetches at once
    patience_seconds: float = 600.0  # without progress, before the run ends
    stall_seconds: float = 30.0  # without a byte, before a request is made again; then of any wait before it is named


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Room for a file on its way, held by this process."""

    key: str
    descriptor: int  # read and write, locked exclusively


@dataclass(frozen=True, kw_only=True, slots=True)
class Full:
    """Why there is no room now."""

    unmovable: int  # bytes in use or on their way
    needed: int  # bytes that would have to fit: those, and what all processes of the node are waiting for


Begun = Place | Full | Literal["here", "elsewhere"]


@dataclass(slots=True)
class _Wishes:
    """Of all living processes."""

    order: dict[str, int] = field(default_factory=dict)  # key: its first place in any list
    waited: dict[str, int] = field(default_factory=dict)  # key: bytes, of those a reader waits for


class Shelf:
    """The files of a cache folder.

    Raises:
        UsageError: when the folder cannot be made or does not allow locks.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.folder = cache, Path(cache.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"{os.getpid()}-{next(_numbers)}{_WISH}"  # before the lock: an unheld one may be removed
            with self._counted():
                self._wish_path = self.folder / name
                self._wish = os.open(self._wish_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._wish, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"the cache folder {self.folder} cannot be used ({error.strerror}): set data.cache to a folder on the "
                f"node's own disk"
            ) from error

    def close(self) -> None:
        """Withdraw this process's wishes."""
        if self._wish >= 0:
            self._wish_path.unlink(missing_ok=True)
            os.close(self._wish)
            self._wish = -1

    def has(self, key: str) -> bool:
        """Whether the shard is here, for the moment."""
        return (self.folder / f"{key}{_WHOLE}").exists()

    def open(self, shard: Shard) -> int | None:
        """A descriptor that keeps the shard here until it is closed; None when it is not here.

        Raises:
            UsageError: when its checksum is none.
        """
        if not _KEY.fullmatch(shard.sha256):
            raise UsageError(f"shard {shard.name} has the sha256 {shard.sha256!r} in the manifest: build the set again")
        return self._held(self.folder / f"{shard.sha256}{_WHOLE}", shard.bytes)

    def wish(self, waited: Sequence[Shard], wanted: Sequence[Shard]) -> None:
        """Let all processes of the node know what this one waits for, and what it will need, in order."""
        content = json.dumps(
            {"waited": {one.sha256: one.bytes for one in waited}, "wanted": [s.sha256 for s in wanted]}
        )
        with self._counted():
            if self._wish >= 0:
                os.pwrite(self._wish, content.encode(), 0)
                os.ftruncate(self._wish, len(content))

    def begin(self, shard: Shard, waited: bool) -> Begun:
        """Room to fetch a shard, unless it is here or being fetched. `waited`: a reader needs it now.

        Raises:
            LastingError: when it can never fit.
            RunError: when the disk is full.
        """
        if shard.bytes > self.cache.bytes:
            raise LastingError(
                f"shard {shard.name} has {shard.bytes:,} bytes and the cache {self.folder} is bounded to "
                f"{self.cache.bytes:,}: raise data.cache_gb"
            )
        with self._counted():
            if self.has(shard.sha256):
                return "here"
            sizes, busy = self._files()
            if f"{shard.sha256}{_PART}" in sizes:
                return "elsewhere"
            full = self._make_room(sizes, busy, shard, waited)
            if full is not None:
                return full
            place = self._place(shard.sha256, shard.bytes)
        self._reserve(place, shard.bytes)
        return place

    def finish(self, place: Place, suffix: str = _WHOLE) -> None:
        """Give the fetched file its final name; all its bytes are written and right."""
        try:
            os.fdatasync(place.descriptor)
            with self._counted():
                os.rename(self.folder / f"{place.key}{_PART}", self.folder / f"{place.key}{suffix}")
        except BaseException:
            self.abandon(place)
            raise
        os.close(place.descriptor)

    def abandon(self, place: Place) -> None:
        """Remove the file on its way."""
        (self.folder / f"{place.key}{_PART}").unlink(missing_ok=True)
        os.close(place.descriptor)

    def spoiled(self, shard: Shard, descriptor: int) -> bool:
        """Whether an open file of the shard has lost its bytes: it is removed then, its readers keep what they opened.

        Another process may have removed it already, and what has its name may be a good one.
        """
        path = self.folder / f"{shard.sha256}{_WHOLE}"
        with open(os.dup(descriptor), "rb") as stream:
            stream.seek(0)
            if hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256:
                return False
        with self._counted(), suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
        return True

    def small(self, key: str) -> bytes | None:
        """The kept small file of that key."""
        descriptor = self._held(self.folder / f"{key}{_SMALL}", None)
        if descriptor is None:
            return None
        with open(descriptor, "rb") as stream:
            return stream.read()

    def keep(self, key: str, content: bytes) -> None:
        """Keep a small file in place of an older one, if there is room that nobody wishes for."""
        shard = Shard(name=key, samples=0, bytes=len(content), sha256=key)
        with self._counted():
            sizes, busy = self._files()
            if f"{key}{_PART}" in sizes or self._make_room(sizes, busy, shard, waited=False):
                return
            place = self._place(key, len(content))
        try:
            os.pwrite(place.descriptor, content, 0)
        except BaseException:
            self.abandon(place)
            raise
        self.finish(place, _SMALL)

    def _held(self, path: Path, size: int | None) -> int | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(descriptor) if _locked(descriptor, fcntl.LOCK_SH) else None
            if found is not None and found.st_nlink and size in (None, found.st_size):
                os.utime(descriptor)  # its last use
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if found is not None and found.st_nlink:  # of another size: a stranger has changed it
            with self._counted():
                self._unused(path)
        return None

    def _place(self, key: str, size: int) -> Place:
        path = self.folder / f"{key}{_PART}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, size)  # from now on it counts
        return Place(key=key, descriptor=descriptor)

    def _reserve(self, place: Place, size: int) -> None:
        try:
            if size:
                os.posix_fallocate(place.descriptor, 0, size)
        except OSError as error:
            self.abandon(place)
            if error.errno != errno.ENOSPC:
                raise
            raise RunError(f"the disk of the cache {self.folder} is full: lower data.cache_gb or make room") from error

    def _files(self) -> tuple[dict[str, int], set[str]]:
        """Sizes of our files by name and those on their way; leftovers of killed processes are removed."""
        sizes, parts = {}, set()
        for entry in os.scandir(self.folder):
            if not _FILE.fullmatch(entry.name):
                continue
            if entry.name.endswith(_PART):
                if self._unused(entry.path):
                    continue
                parts.add(entry.name)
            try:
                sizes[entry.name] = entry.stat().st_size
            except FileNotFoundError:  # abandoned just now
                parts.discard(entry.name)
        return sizes, parts

    def _make_room(self, sizes: dict[str, int], parts: set[str], shard: Shard, waited: bool) -> Full | None:
        total, bound = sum(sizes.values()), self.cache.bytes - shard.bytes
        if total <= bound:
            return None
        wishes, unused = self._wishes(), []
        for name in sizes.keys() - parts:
            key = name.partition(".")[0]
            if key not in wishes.waited and (waited or key not in wishes.order):
                try:
                    used = os.stat(self.folder / name).st_mtime_ns
                except FileNotFoundError:
                    continue
                unused.append((-wishes.order.get(key, len(wishes.order)), used, name))
        # what nobody wishes for stands behind every list; of a list the last goes first
        for _, _, name in sorted(unused):
            if total <= bound:
                return None
            if self._unused(self.folder / name):
                total -= sizes.pop(name)
        if total <= bound:
            return None
        held = {name: size for name, size in sizes.items() if name in parts or self._in_use(self.folder / name)}
        keys = {name.partition(".")[0] for name in held}
        missing = {**wishes.waited, shard.sha256: shard.bytes}
        needed = sum(held.values()) + sum(size for key, size in missing.items() if key not in keys)
        return Full(unmovable=sum(held.values()), needed=needed)

    def _wishes(self) -> _Wishes:
        found = _Wishes()
        for path in self.folder.glob(f"*{_WISH}"):
            if path != self._wish_path and self._unused(path):
                continue
            content = json.loads(path.read_text() or "{}")
            found.waited.update(content.get("waited", {}))
            for place, key in enumerate(content.get("wanted", [])):
                found.order[key] = min(place, found.order.get(key, place))
        return found

    def _unused(self, path: Path | str) -> bool:
        """Remove the file if nobody holds it; called with `lock`, under which alone such files are made."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # its process gave it up just now
            return True
        try:
            free = _locked(descriptor, fcntl.LOCK_EX)
            if free:
                os.unlink(path)
            return free
        finally:
            os.close(descriptor)

    def _in_use(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _locked(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Hold `lock`. Waiting polls: a thread inside flock could not be ended."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            until = time.monotonic() + _LOCK_SECONDS
            while not _locked(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    raise RunError(f"another process has held {self.folder}/lock for {_LOCK_SECONDS:g} s: end it")
                time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
