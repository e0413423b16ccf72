"""Where each member of a tar lies and what its bytes are: read from the tar itself, kept in the parquet beside it.

Columns that this module owns: `key` and, for every member extension EXT of the shard, `EXT_offset` and `EXT_length`
(int64, bytes from the start of the tar; the payload, not the header) and `EXT_xxh3` (uint64, xxh3_64 of the payload).

`python -m bigdiff.data.index FOLDER` makes a readable set of tars that someone else wrote (bigdiff.data.foreign).
"""

import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigdiff.config.errors import RunError
from bigdiff.data.tars import TarFile, split


class Member(NamedTuple):
    """Place and checksum of a member."""

    offset: int
    length: int
    xxh3: int  # 0 from `places`


PICTURES = ("image", "jpg", "jpeg", "png", "webp")  # "image": of any format (bigdiff.data.foreign)
PARTS = ("offset", "length", "xxh3")
Members = dict[str, dict[str, Member]]  # {key: {extension: member}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What one pass over a tar finds."""

    members: Members  # in the tar's order
    bytes: int
    sha256: str  # of the tar


def scan(tar: Path) -> Scan:
    """Members with checksums, size and sha256 of a plain tar, which is read once.

    A key is a member's name up to the first dot of its last path part, as in WebDataset.

    Raises:
        RunError: for a damaged tar or a member that is not a plain file (links could escape the set).
    """
    with TarFile(tar, checksums=True) as opened:
        found = _members(tar, opened)
        size, sha256 = opened.finish()
    return Scan(members=found, bytes=size, sha256=sha256)


def members(tar: Path) -> Members:
    """The members alone of `scan`."""
    return scan(tar).members


def places(tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, length)}} without reading the payloads, which `scan` costs.

    Raises:
        RunError: as `scan`.
    """
    with TarFile(tar, checksums=False) as opened:
        found = _members(tar, opened)
    return {key: {ext: (one.offset, one.length) for ext, one in parts.items()} for key, parts in found.items()}


def _members(tar: Path, opened: TarFile) -> Members:
    found: Members = {}
    try:
        for entry in opened:
            if not entry.plain:
                raise RunError(f"{tar}: member {entry.name!r} is not a plain file inside the set")
            key, extension = split(entry.name)
            found.setdefault(key, {})[extension] = Member(entry.offset, entry.length, entry.xxh3)
    except tarfile.TarError as error:
        raise RunError(f"{tar} is damaged ({error}): rebuild the shard") from error
    return found


def columns(keys: list[str], found: Members) -> dict[str, npt.NDArray[np.int64] | npt.NDArray[np.uint64]]:
    """The `EXT_offset`, `EXT_length` and `EXT_xxh3` columns of `keys`, in that order.

    Raises:
        RunError: when samples of one shard have different members.
    """
    extensions = sorted(found[keys[0]]) if keys else []
    for key in keys:
        if sorted(found[key]) != extensions:
            raise RunError(f"sample {key} has members {sorted(found[key])}, others of its shard have {extensions}")
    table: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.uint64]] = {}
    for extension in extensions:
        rows = [found[key][extension] for key in keys]
        table[f"{extension}_offset"] = np.array([row.offset for row in rows], np.int64)
        table[f"{extension}_length"] = np.array([row.length for row in rows], np.int64)
        table[f"{extension}_xxh3"] = np.array([row.xxh3 for row in rows], np.uint64)
    return table


def located(names: Collection[str]) -> list[str]:
    """The extensions whose members an index's columns `names` locate; `caption_length` alone is a fact, no member."""
    ends = (name.removesuffix("_offset") for name in names if name.endswith("_offset"))
    return sorted(end for end in ends if f"{end}_length" in names)


def picture_member(names: Collection[str]) -> str | None:
    """Of an index's columns `names`, the extension under which it locates the pictures."""
    return next((one for one in PICTURES if {f"{one}_offset", f"{one}_length"} <= set(names)), None)


if __name__ == "__main__":
    from bigdiff.config.errors import door
    from bigdiff.data.foreign import main

    door(main)
