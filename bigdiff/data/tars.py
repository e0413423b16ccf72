"""One forward pass over a plain tar: its members in order, and the checksums of the bytes on the way.

Each byte is read once, a block at a time, whatever the tar's size.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final

import xxhash

BLOCK: Final = 1 << 20  # bytes in memory at a time
END: Final = bytes(1024)  # what closes a tar


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a tar."""

    name: str
    plain: bool  # a regular file in one piece, under a path that stays inside the set
    offset: int  # of the payload, from the start of the tar
    length: int
    xxh3: int  # xxh3_64 of the payload; 0 where it was not asked for


class TarFile:
    """An open tar, to be gone through once.

    Raises (while iterating):
        tarfile.TarError: where it is damaged, after the members in front of that place.
    """

    def __init__(self, path: Path, checksums: bool) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._sha256 = hashlib.sha256()
        self._done = 0  # bytes that sha256 has seen
        self._block = bytearray(BLOCK) if checksums else None

    def __enter__(self) -> "TarFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def __iter__(self) -> Iterator[Entry]:
        with tarfile.open(self._path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")  # tarfile would go round in circles
                plain = member.isreg() and not member.issparse() and _inside(member.name)
                xxh3 = self._checksum(member.offset_data, member.size) if plain and self._block is not None else 0
                yield Entry(member.name, plain, member.offset_data, member.size, xxh3)
            # tarfile takes a cut or overwritten header for the end, too
            if os.pread(self._descriptor, len(END), archive.offset) != END:
                raise tarfile.ReadError("it has no end")

    def read(self, entry: Entry, most: int | None = None) -> bytes:
        """The payload of a member, or its first `most` bytes."""
        length = entry.length if most is None else min(most, entry.length)
        return os.pread(self._descriptor, length, entry.offset)

    def finish(self) -> tuple[int, str]:
        """Bytes and sha256 of the whole file, damage included; for a tar opened with checksums."""
        size = os.fstat(self._descriptor).st_size
        self._feed(size - self._done)
        return size, self._sha256.hexdigest()

    def _checksum(self, offset: int, length: int) -> int:
        payload = xxhash.xxh3_64()
        self._feed(offset - self._done)
        self._feed(length, payload)
        return payload.intdigest()

    def _feed(self, count: int, payload: xxhash.xxh3_64 | None = None) -> None:
        assert self._block is not None
        view = memoryview(self._block)
        while count > 0:
            got = os.preadv(self._descriptor, [view[: min(count, BLOCK)]], self._done)
            if not got:
                raise tarfile.ReadError("unexpected end of data")
            self._sha256.update(view[:got])
            if payload is not None:
                payload.update(view[:got])
            self._done += got
            count -= got


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def split(name: str) -> tuple[str, str]:
    """A member's key and extension, cut at the first dot of the last part of its path, as in WebDataset."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension
