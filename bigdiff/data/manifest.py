"""`manifest.json`: what a shard set holds, how it was made, and whether it is the one that is needed."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bigdiff.config.errors import UsageError
from bigdiff.runtime.files import write_json

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar: `name`.tar, with `name`.parquet beside it (a row per sample)."""

    name: str  # five digits or more, "00042"
    samples: int
    bytes: int
    sha256: str  # of the tar
    index_sha256: str = ""  # of the index beside it; "" where the set was made without
    bucket: str = ""  # "WIDTHxHEIGHT" in pixels, of all its samples; "" where the set has one shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A shard set: its shards in order, the contract of what is stored, and where it came from."""

    kind: Literal["images", "latents"]
    shards: tuple[Shard, ...]
    contract: dict[str, Any] = field(default_factory=dict)  # what a reader must agree with, line by line
    lineage: dict[str, Any] = field(default_factory=dict)  # inputs and settings, for a person and for a resume
    index: str = ".parquet"  # ending of the file beside a tar that says where its members lie

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Samples of each shard, in order."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def buckets(self) -> tuple[str, ...]:
        """The bucket of each shard, in order."""
        return tuple(shard.bucket for shard in self.shards)


def write(folder: Path, manifest: Manifest) -> None:
    """Publish a shard set: the manifest is the last file written, so a set with a manifest is whole."""
    content = {"format": FORMAT, "samples": manifest.samples, **asdict(manifest)}
    write_json(folder / NAME, content)


def read(folder: Path, kind: Literal["images", "latents"]) -> Manifest:
    """The manifest of the shard set in `folder`.

    Raises:
        UsageError: when it is absent (unfinished set), not JSON, of another format or kind, or empty.
    """
    file = folder / NAME
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise unfinished(str(folder)) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}): rebuild the shard set") from error
    return parse(content, str(file), kind)


def unfinished(location: str) -> UsageError:
    """What to say of a set whose manifest is absent."""
    return UsageError(
        f"{location} has no {NAME}: it is not a finished shard set; run the command that makes it again "
        f"(tars that someone else wrote: python -m bigdiff.data.index)"
    )


def parse(content: bytes, where: str, kind: Literal["images", "latents"]) -> Manifest:
    """The manifest whose file `where` holds `content`.

    Raises:
        UsageError: when it is not JSON, of another format or kind, empty, or names files outside of the set's folder.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise UsageError(f"{where} cannot be read as JSON ({error}): rebuild the shard set") from error
    if found.get("format") != FORMAT:
        raise UsageError(f"{where} has format {found.get('format')!r}, this version reads {FORMAT}")
    if found["kind"] != kind:
        raise UsageError(f"{where} holds {found['kind']}, but {kind} are needed here")
    shards = tuple(Shard(**shard) for shard in found["shards"])
    manifest = Manifest(
        kind=kind,
        shards=shards,
        contract=found["contract"],
        lineage=found["lineage"],
        index=found.get("index", ".parquet"),
    )
    for name in (*(shard.name for shard in shards), manifest.index):
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise UsageError(f"{where} names {name!r}, which is no plain file name: do not trust this set")
    if not manifest.samples:
        raise UsageError(f"{where} lists no samples: rebuild the shard set")
    return manifest


def digest(content: bytes) -> str:
    """Sha256 of a manifest file: it covers every shard's own checksum, so it names the exact bytes of the set."""
    return hashlib.sha256(content).hexdigest()


def fingerprint(folder: Path) -> str:
    """The `digest` of a local set."""
    return digest((folder / NAME).read_bytes())


def differences(contract: dict[str, Any], needed: dict[str, Any]) -> list[str]:
    """Sentences for each key whose value in `contract` is not the one in `needed`."""
    return [
        f"{key} is {contract.get(key, 'absent')!r} in the set, {needed[key]!r} is needed"
        for key in sorted(needed)
        if contract.get(key) != needed[key]
    ]
