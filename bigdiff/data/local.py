"""A shard set in a folder: descriptors of its tars, and their bytes asked for from the disk before they are read.

Samples of a window are read in random order, which a disk serves slower than a file from end to end. Announcing whole
shards of what is needed soon makes it the latter: 1.25 to 1.5 times the rate of two cold reading threads, 1.0 to 1.3
times that of eight or sixteen (64 KiB reads, 12 shards of 128 MiB, a virtual disk of 0.7-1.4 GB/s). The kernel reads;
nothing is copied.
"""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Final

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import checked
from bigdiff.data.transfer import Absent, Corrupt

SUFFIX: Final = ".tar"
AHEAD_BYTES: Final = 1 << 30  # of the page cache that announced shards may take
PIECE: Final = 8 << 20  # bytes announced at once: `close` waits for one at most


class Local:
    """A set in a folder; at most `ahead` bytes of the wishes are read before they are asked for."""

    def __init__(self, folder: Path, ahead: int = AHEAD_BYTES) -> None:
        self.folder, self.location, self.ahead = folder, str(folder), ahead
        self._changed = Condition()
        self._wanted: tuple[Shard, ...] = ()
        self._announced: set[str] = set()
        self._over = Event()
        self._thread: Thread | None = None

    def read(self, name: str, digest: str = "") -> bytes:
        """A small whole file, of that sha256 if one is given; raises Absent, Corrupt."""
        try:
            content = (self.folder / checked(name)).read_bytes()
        except FileNotFoundError as error:
            raise Absent(f"{self.folder / name} is absent") from error
        except OSError as error:
            raise RunError(f"{self.folder / name} cannot be read: {error.strerror}") from error
        if digest and sha256(content).hexdigest() != digest:
            raise Corrupt(f"{self.folder / name} has another sha256 than the manifest's {digest}")
        return content

    def spoiled(self, shard: Shard, descriptor: int) -> bool:
        """No copy is given up: the folder's is the only one."""
        return False

    def open(self, shard: Shard) -> int:
        """A descriptor of the tar; raises Absent, Corrupt (another size; the content is checked sample by sample)."""
        path = self.folder / checked(shard.name + SUFFIX)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Absent(f"{path} is absent") from error
        except OSError as error:
            raise RunError(f"{path} cannot be opened: {error.strerror}") from error
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            raise Corrupt(f"{path} has {size} bytes, the manifest says {shard.bytes}")
        return descriptor

    def want(self, shards: Sequence[Shard]) -> None:
        """Have the disk read these, in order, as many as `ahead` bytes hold; returns at once."""
        with self._changed:
            if self._over.is_set():
                return
            self._wanted = tuple(shards)
            self._announced &= {shard.name for shard in shards}
            if self._thread is None and shards:
                self._thread = Thread(target=self._announce, name="read-ahead", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; descriptors from `open` stay good."""
        with self._changed:
            self._over.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _announce(self) -> None:
        while True:
            with self._changed:
                shard = self._next()
                while shard is None and not self._over.is_set():
                    self._changed.wait()
                    shard = self._next()
                if shard is None or self._over.is_set():
                    return
                self._announced.add(shard.name)
            try:
                descriptor = self.open(shard)
            except (Absent, Corrupt, RunError):  # `open` will tell whoever needs it
                continue
            try:
                for start in range(0, shard.bytes, PIECE):
                    if self._over.is_set():
                        return
                    os.posix_fadvise(descriptor, start, PIECE, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def _next(self) -> Shard | None:
        left = self.ahead
        for shard in self._wanted:
            left -= shard.bytes
            if left < 0:
                return None
            if shard.name not in self._announced:
                return shard
        return None
