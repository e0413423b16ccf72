"""`manifest.json`: what a shard set holds, how it was made, and whether it is the one that is needed."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bigdiff.config.errors import UsageError
from bigdiff.runtime.files import sha256, write_json

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar: `name`.tar, with `name`.parquet beside it (a row per sample)."""

    name: str  # five digits or more, "00042"
    samples: int
    bytes: int
    sha256: str  # of the tar


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A shard set: its shards in order, the contract of what is stored, and where it came from."""

    kind: Literal["images", "latents"]
    shards: tuple[Shard, ...]
    contract: dict[str, Any] = field(default_factory=dict)  # what a reader must agree with, line by line
    lineage: dict[str, Any] = field(default_factory=dict)  # inputs and settings, for a person and for a resume

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard, in order."""
        return tuple(shard.samples for shard in self.shards)


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
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"{folder} has no {NAME}: it is not a finished shard set; run the command that makes it again"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error}): rebuild the shard set") from error
    if content.get("format") != FORMAT:
        raise UsageError(f"{file} has format {content.get('format')!r}, this version reads {FORMAT}")
    if content["kind"] != kind:
        raise UsageError(f"{file} holds {content['kind']}, but {kind} are needed here")
    shards = tuple(Shard(**shard) for shard in content["shards"])
    manifest = Manifest(kind=kind, shards=shards, contract=content["contract"], lineage=content["lineage"])
    if not manifest.samples:
        raise UsageError(f"{file} lists no samples: rebuild the shard set")
    return manifest


def fingerprint(folder: Path) -> str:
    """Sha256 of the manifest file: it covers every shard's own checksum, so it names the exact bytes of the set."""
    return sha256(folder / NAME)


def differences(contract: dict[str, Any], needed: dict[str, Any]) -> list[str]:
    """Sentences for each key whose value in `contract` is not the one in `needed`."""
    return [
        f"{key} is {contract.get(key, 'absent')!r} in the set, {needed[key]!r} is needed"
        for key in sorted(needed)
        if contract.get(key) != needed[key]
    ]
