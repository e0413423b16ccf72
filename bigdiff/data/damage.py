"""Samples that cannot or must not be used: what was found, what took their place, and how much of it is too much.

A sample is good when its member's bytes have the index's length and checksum. Which samples are bad is thus a
property of the data, and which sample takes the place of a bad one is arithmetic (Course.substitute), so every rank
and every restart agrees without talking, and the order never shifts.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bigdiff.config.errors import LastingError, UsageError

TOMBSTONE = "tombstone"  # the reason of a sample that was taken down
ATTEMPTS = 64  # substitutes tried for one position; with half of the data bad, 64 fail once in 2e19 positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Substitution:
    """A sample that could not be used at a position: the one of the order, or a substitute that was bad, too."""

    position: int  # of the run
    source: int
    shard: int
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumed:
    """What a micro-batch was really made of, for the audit."""

    position: int  # of its first sample
    samples: int
    digest: int  # xxh3_64 of the int64 array [3, samples]: source, shard and row of each, C order, little endian
    substituted: tuple[Substitution, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstones:
    """Keys, URLs and hashes that must not be trained on, as a list that can grow while a run is stopped."""

    entries: frozenset[str]

    def rows(self, index: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a shard's index are taken down: bool [rows].

        An entry matches a row's `key`, `url` or `sha256`, whichever of these columns the index has.
        """
        dead = np.zeros(index.num_rows, bool)
        if not self.entries:
            return dead
        wanted = pa.array(sorted(self.entries), pa.string())  # imports pandas, 0.3 s of CPU time
        for column in ("key", "url", "sha256"):
            if column in index.column_names:
                dead |= pc.is_in(index[column].cast(pa.string()), value_set=wanted).to_numpy(zero_copy_only=False)
        return dead

    @property
    def digest(self) -> str:
        """Sha256 of the entries, for the run's folder."""
        return hashlib.sha256("\n".join(sorted(self.entries)).encode()).hexdigest()


def read_tombstones(file: str) -> Tombstones:
    """The entries of a text file: one key, URL or sha256 per line; "" is no file.

    Raises:
        UsageError: when it cannot be read.
    """
    if not file:
        return Tombstones(entries=frozenset())
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the tombstones of {file} ({error}): name a text file, one entry a line"
        ) from error
    return Tombstones(entries=frozenset(line.strip() for line in lines if line.strip()))


def budget_left(samples: int, damaged: int, share: float) -> bool:
    """Whether a run that met `damaged` bad samples among `samples` may go on with a budget of `share`.

    One bad batch at the start of a run is no rate yet: the share is taken of a thousand samples at least.
    """
    return damaged <= share * max(samples, 1000)


def over_budget(samples: int, damaged: int, share: float) -> LastingError:
    """What to say when the budget is used up."""
    return LastingError(
        f"{damaged} of {samples} samples were damaged and substituted, more than data.damage_budget={share:g} allows: "
        f"the warnings above name the shards; rebuild them, or raise the budget"
    )


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"warning: {line}\n")


@dataclass(kw_only=True)
class Quarantine:
    """What this process found to be bad: it warns once per shard and reason, and counts. Any thread may report."""

    warn: Callable[[str], None] = _to_stderr
    damaged: int = 0  # samples substituted for damage
    dead: int = 0  # for a tombstone
    shards: Counter[str] = field(default_factory=Counter)  # name of the tar -> samples substituted
    _lock: Lock = field(default_factory=Lock)
    _told: set[tuple[str, str]] = field(default_factory=set)

    def report(self, tar: str, row: int, offset: int | None, reason: str) -> None:
        """Sample `row` of `tar` was not used."""
        kind = reason.partition(":")[0]
        with self._lock:
            if reason == TOMBSTONE:
                self.dead += 1
                return
            self.damaged += 1
            self.shards[tar] += 1
            first = (tar, kind) not in self._told
            self._told.add((tar, kind))
        if first:
            where = f" at offset {offset}" if offset is not None else ""
            self.warn(
                f"{tar}, sample {row}{where}: {reason}; substituted, as every damaged sample of this shard will be"
            )
