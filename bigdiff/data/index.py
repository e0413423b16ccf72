"""Where each member of a tar lies: offsets read from the tar itself, kept in the parquet beside it.

Columns of `NNNNN.parquet` that this module owns: `key` and, for every member extension EXT of the shard,
`EXT_offset` and `EXT_length` (bytes from the start of the tar; the payload, not the header).
"""

import tarfile
from pathlib import Path

from bigdiff.config.errors import RunError


def members(tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, length)}} of a plain tar, in the tar's order, without reading the payloads.

    A key is a member's name up to the first dot of its last path part, as in WebDataset.

    Raises:
        RunError: for a damaged tar or a member that is not a plain file (links could escape the set).
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise RunError(f"{tar}: member {member.name!r} is not a plain file inside the set")
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                found.setdefault(key, {})[extension] = (member.offset_data, member.size)
            end = archive.offset  # of the mark that closes a tar; tarfile takes a cut header for the end, too
        with tar.open("rb") as stream:
            stream.seek(end)
            if stream.read(1024) != bytes(1024):
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as error:
        raise RunError(f"{tar} is damaged ({error}): rebuild the shard") from error
    return found


def columns(keys: list[str], found: dict[str, dict[str, tuple[int, int]]]) -> dict[str, list[int]]:
    """The `EXT_offset` and `EXT_length` columns of `keys`, in that order.

    Raises:
        RunError: when samples of one shard have different members.
    """
    extensions = sorted(found[keys[0]]) if keys else []
    table: dict[str, list[int]] = {f"{ext}_{part}": [] for ext in extensions for part in ("offset", "length")}
    for key in keys:
        if sorted(found[key]) != extensions:
            raise RunError(f"sample {key} has members {sorted(found[key])}, others of its shard have {extensions}")
        for extension in extensions:
            offset, length = found[key][extension]
            table[f"{extension}_offset"].append(offset)
            table[f"{extension}_length"].append(length)
    return table
