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
    # Of the samples that stand for several, as duplicates were left out: a part that a stage can weight (data.sources).
    cluster_size_at_least: int | None = None
    cluster_size_below: int | None = None
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
    _check_cluster_sizes(found.pack)
    check_scoring(found.score)
    check_dedup(found.dedup, found.score)
    return found


def _check_cluster_sizes(pack: Shards) -> None:
    least, most = pack.cluster_size_at_least, pack.cluster_size_below
    for key, value in {"cluster_size_at_least": least, "cluster_size_below": most}.items():
        if value is not None and value < 2:
            raise UsageError(f"pack.{key} is {value}: every sample stands for 1 or more, so name 2 or more")
    if least is not None and most is not None and least >= most:
        raise UsageError(
            f"pack.cluster_size_at_least={least} is not below pack.cluster_size_below={most}: none is both"
        )
