"""Files that are either whole or absent: temporary name, fsync, rename."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"  # suffix of what is being written; a leftover may be deleted by anybody who starts again


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on a clean exit it is synced to disk and takes `final`'s name.

    After an exception the temporary file is removed and `final` is as it was. The process id keeps two writers of
    one name apart; the later rename wins with a whole file.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, final)
        sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(final: Path, content: bytes) -> None:
    """Write `content` to `final`, whole or not at all."""
    with replacing(final) as temporary:
        temporary.write_bytes(content)


def write_json(final: Path, content: Any) -> None:  # noqa: ANN401 (whatever json takes)
    """Write `content` as indented JSON to `final`, whole or not at all; the same content gives the same bytes."""
    write_bytes(final, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left under temporary names in `folder` (not below it)."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)
