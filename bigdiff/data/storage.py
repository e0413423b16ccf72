"""Where the files of a shard set come from: a folder, or a remote set through the node's cache.

Unreachable is not damaged: what a server cannot give now is asked for again and ends in RunError; `Absent` and
`Corrupt` say what is wrong with the set itself, so that every process of a run comes to the same answer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Final, Protocol

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data.cache import Cache, Full, Place, Shelf
from bigdiff.data.local import SUFFIX, Local
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import Origin, checked, origin, remote
from bigdiff.data.transfer import Absent, Corrupt, Patience, Transfer, to_stderr
from bigdiff.data.wire import Ended

__all__ = ["Absent", "Cache", "Corrupt", "Local", "Remote", "Storage", "open_storage"]
POLL_SECONDS: Final = 0.05  # how soon a waiting reader sees what another process fetched
RECOUNT_SECONDS: Final = 0.5  # between two looks of a process at a full folder, or at what others fetch
RETRY_SECONDS: Final = 10.0  # before anything is read ahead again when that failed and no reader waits


class Storage(Protocol):
    """A shard set's files; all methods may be called from any thread."""

    location: str

    def read(self, name: str, digest: str = "") -> bytes:
        """A small whole file, such as manifest.json or an index, of that sha256 if given; raises Absent, Corrupt."""

    def open(self, shard: Shard) -> int:
        """A descriptor of the whole tar, which the caller closes; waits until it is here; raises Absent, Corrupt."""

    def spoiled(self, shard: Shard, descriptor: int) -> bool:
        """Whether an open copy of the tar has not its bytes; it is given up, and `open` then gets a better one."""

    def want(self, shards: Sequence[Shard]) -> None:
        """What is needed soon, in this order, in place of what was said before; returns at once."""

    def close(self) -> None:
        """End all threads and waiting calls; nothing stays open or locked but what `open` gave away."""


def open_storage(location: str, cache: Cache | None, say: Callable[[str], None] = to_stderr) -> Storage:
    """The set in a folder or under http(s):// or s3://.

    Raises:
        UsageError: for another scheme, a remote set without a cache, or a cache that cannot be used.
    """
    if not remote(location):
        return Local(Path(location))
    if cache is None:
        raise UsageError(f"{location} needs a folder to keep shards in: set data.cache and data.cache_gb")
    return Remote(origin(location), cache, say)


class Remote:
    """A remote set through the node's cache. Threads fetch what is waited for, then what is wished for, in order.

    Processes of a node share the work by themselves: each fetches the first shard of its list that no other has begun.
    """

    def __init__(self, source: Origin, cache: Cache, say: Callable[[str], None] = to_stderr) -> None:
        self.location, self.cache, self._say = source.location, cache, say
        patience = Patience(seconds=cache.patience_seconds, stall_seconds=cache.stall_seconds)
        self._transfer = Transfer(source, patience, say)
        self._shelf = Shelf(cache)
        self._changed, self._stating = Condition(), Lock()
        self._waits: dict[str, _Wait] = {}  # by sha256, as all below
        self._wanted: dict[str, Shard] = {}
        self._unstated = False  # the cache folder does not know these two yet
        self._begun: set[str] = set()
        self._failed: dict[str, Exception] = {}
        self._later: dict[str, float] = {}  # not to be looked at before
        self._ahead_later = 0.0  # the same for all that is only wished for
        self._closed = False
        self._threads: list[Thread] = []
        try:
            for number in range(cache.threads + 1):  # the last is kept free for what is waited for
                ahead = number < cache.threads
                thread = Thread(target=self._work, args=(ahead,), name=f"shards-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, digest: str = "") -> bytes:
        """A small whole file; raises Absent, Corrupt.

        With a digest it is fetched once for the node. Without one its version is asked for every time (one round
        trip): a set that was mended or replaced is seen at once. Bytes only travel when the cache lacks that version.
        """
        key = digest or sha256(f"{self.location}/{name}".encode()).hexdigest()
        try:
            kept = self._shelf.small(key)
            if digest:
                return self._exact(name, digest, kept)
            etag, content = _unpacked(kept)
            small = self._transfer.read(checked(name), etag)
            if small is None:
                return content
            if small.etag:
                self._shelf.keep(key, _packed(small.etag, small.content))
        except Ended:
            raise self._ended() from None
        except OSError as error:
            raise self._unusable(error) from error
        return small.content

    def _exact(self, name: str, digest: str, kept: bytes | None) -> bytes:
        if kept is not None and sha256(kept).hexdigest() == digest:
            return kept
        small = self._transfer.read(checked(name), digest=digest)
        assert small is not None, "no version was named"
        self._shelf.keep(digest, small.content)
        return small.content

    def spoiled(self, shard: Shard, descriptor: int) -> bool:
        """Hash what was opened; a file that the node's disk has spoiled is removed and will be fetched again."""
        try:
            spoiled = self._shelf.spoiled(shard, descriptor)
        except OSError as error:
            raise self._unusable(error) from error
        if spoiled:
            self._say(
                f"{self.location}/{shard.name}{SUFFIX}: its copy in {self.cache.folder} was spoiled; fetched anew"
            )
        return spoiled

    def open(self, shard: Shard) -> int:
        """A descriptor of the tar in the cache, which stays there until it is closed; raises Absent, Corrupt."""
        checked(shard.name + SUFFIX)
        descriptor = self._shelf.open(shard)
        if descriptor is not None:
            return descriptor
        with self._changed:
            self._waits.setdefault(shard.sha256, _Wait(shard)).readers += 1
            self._restate()
        try:
            while True:
                descriptor = self._shelf.open(shard)
                if descriptor is not None:
                    return descriptor
                with self._changed:
                    failure = self._failed.get(shard.sha256)
                    if failure is not None:
                        raise type(failure)(*failure.args) from failure
                    if self._closed:
                        raise self._ended()
                    self._changed.wait(POLL_SECONDS)
        finally:
            with self._changed:
                self._waits[shard.sha256].readers -= 1
                if not self._waits[shard.sha256].readers:
                    del self._waits[shard.sha256]
                    if self._failed.pop(shard.sha256, None):  # told: the next call tries anew, no thread before
                        self._wanted.pop(shard.sha256, None)
                    self._restate()

    def want(self, shards: Sequence[Shard]) -> None:
        """Fetch these in the background as far as they fit beside what is in use and what others wish for."""
        with self._changed:
            self._wanted = {shard.sha256: shard for shard in shards}
            self._failed = {key: error for key, error in self._failed.items() if key in {*self._wanted, *self._waits}}
            self._later.clear()
            self._ahead_later = 0.0
            self._restate()

    def close(self) -> None:
        """End all threads and waiting calls, soon; descriptors from `open` stay good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._transfer.close()
        for thread in self._threads:
            thread.join()
        self._shelf.close()

    def _restate(self) -> None:
        self._unstated = True
        self._changed.notify_all()

    def _work(self, ahead: bool) -> None:
        """Of each thread: one shard after another, until `close`; `ahead`: also what is only wished for."""
        while True:
            with self._changed:
                shard = self._next(ahead)
                while shard is None and not self._unstated and not self._closed:
                    self._changed.wait(RECOUNT_SECONDS if self._wanted or self._waits else None)
                    shard = self._next(ahead)
                if self._closed:
                    return
                if shard is not None:
                    self._begun.add(shard.sha256)
            self._try(shard)

    def _next(self, ahead: bool) -> Shard | None:
        now = time.monotonic()

        def free(key: str) -> bool:
            return key not in self._begun and key not in self._failed and self._later.get(key, 0.0) <= now

        for key, wait in self._waits.items():
            if free(key):
                return wait.shard
        if ahead and self._ahead_later <= now:
            for key, shard in self._wanted.items():
                if free(key) and not self._shelf.has(key):
                    return shard
        return None

    def _try(self, shard: Shard | None) -> None:
        """State the wishes, then fetch the shard if nobody has and there is room; a failure is kept for `open`."""
        failure: Exception | None = None
        try:
            self._state()
            if shard is not None:
                self._fetch(shard)
        except Ended:
            return
        except OSError as error:
            failure = self._unusable(error)
        except (Absent, Corrupt, RunError, UsageError) as error:
            failure = error
        except Exception as error:  # a fault of this code: the thread dies of it, and no reader waits for ever
            failure = error
            raise
        finally:
            with self._changed:
                if shard is not None:
                    self._begun.discard(shard.sha256)
                    self._note(shard.sha256, failure)
                self._changed.notify_all()

    def _note(self, key: str, failure: Exception | None) -> None:
        if isinstance(failure, (Absent, Corrupt)) or (failure is not None and key in self._waits):
            self._failed[key] = failure
        elif failure is not None:  # nobody waits for it: the server may be back until then
            self._ahead_later = time.monotonic() + RETRY_SECONDS

    def _state(self) -> None:
        with self._stating:
            with self._changed:
                if not self._unstated:
                    return
                self._unstated = False
                waited, wanted = [wait.shard for wait in self._waits.values()], list(self._wanted.values())
            self._shelf.wish(waited, wanted)

    def _fetch(self, shard: Shard) -> None:
        with self._changed:
            waited = shard.sha256 in self._waits
        begun = self._shelf.begin(shard, waited)
        if isinstance(begun, Full):
            self._full(shard, begun)
        elif isinstance(begun, Place):
            try:
                self._transfer.fetch(shard.name + SUFFIX, shard.bytes, shard.sha256, begun.descriptor)
            except BaseException:
                self._shelf.abandon(begun)
                raise
            self._shelf.finish(begun)
        else:  # another process has it or is at it; should that one die, this one looks again
            with self._changed:
                self._later[shard.sha256] = time.monotonic() + RECOUNT_SECONDS

    def _full(self, shard: Shard, full: Full) -> None:
        now = time.monotonic()
        with self._changed:
            wait = self._waits.get(shard.sha256)
            if wait is None:
                self._ahead_later = now + RECOUNT_SECONDS
                return
            self._later[shard.sha256] = now + RECOUNT_SECONDS
            wait.full_since = wait.full_since or now
            waited, speak = now - wait.full_since, not wait.said
            wait.said = wait.said or waited > self.cache.stall_seconds
        where = f"{self.location}/{shard.name}{SUFFIX} ({shard.bytes:,} bytes) has no room in {self.cache.folder}"
        words = f"{where}: {full.unmovable:,} of {self.cache.bytes:,} bytes are in use"
        if waited > self.cache.patience_seconds:
            raise RunError(
                f"{words}, for {waited:.0f} s: data.cache_gb must be at least {full.needed / 1e9:.3f} "
                f"({full.needed:,} bytes)"
            )
        if speak and waited > self.cache.stall_seconds:
            self._say(f"{words}; waiting")

    def _ended(self) -> RunError:
        return RunError(f"{self.location} was closed while it was read")

    def _unusable(self, error: OSError) -> RunError:
        return RunError(f"the cache {self.cache.folder} cannot be used: {error}")


@dataclass(slots=True)
class _Wait:
    """A shard that readers wait for."""

    shard: Shard
    readers: int = 0
    full_since: float = 0.0
    said: bool = False


def _packed(etag: str, content: bytes) -> bytes:
    return etag.encode() + b"\n" + content


def _unpacked(kept: bytes | None) -> tuple[str, bytes]:
    etag, _, content = (kept or b"").partition(b"\n")
    return etag.decode(), content
