"""Every knob of making one image set out of another: which of its samples stay, and in which shards they lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigdiff.config.dedup import Dedup, check_dedup
from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, find, load
from bigdiff.config.scoring import Scoring, check_scoring


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """What is written. The pictures' bytes stay as they are."""

    samples_per_shard: int = 10_000  # at most; the samples are spread evenly over the shards
    takedown: str = ""  # text file of keys, URLs or sha256 that must not be in the set, one a line
    processes: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Repack:
    """One job."""

    score: Scoring = field(default_factory=Scoring)
    dedup: Dedup = field(default_factory=Dedup)
    pack: Shards = field(default_factory=Shards)


def load_repack(name: str | None, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> Repack:
    """The job `name` (a file under configs/repack, or a path to one), or the defaults; then `key=value` overrides.

    Raises:
        UsageError: for an unknown file, a key that it has not, or a value that cannot be used.
    """
    files = [find(name, configs / "repack", "repacking")] if name else []
    found = load(Repack, files, overrides)
    for key in ("samples_per_shard", "processes"):
        if getattr(found.pack, key) <= 0:
            raise UsageError(f"pack.{key} is {getattr(found.pack, key)}: it must be above 0")
    check_scoring(found.score)
    check_dedup(found.dedup, found.score)
    return found
