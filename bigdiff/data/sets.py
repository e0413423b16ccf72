"""Open shard sets, alone and as the sources of one stream: what readers of latents and of images have in common."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import numpy as np

from bigdiff.data import manifest
from bigdiff.data.arena import Arena
from bigdiff.data.course import Picks
from bigdiff.data.damage import Tombstones
from bigdiff.data.manifest import Manifest
from bigdiff.data.origin import remote
from bigdiff.data.shards import Columns, Opened, Shards, Slot
from bigdiff.data.spans import Spans, joined
from bigdiff.data.storage import Absent, Cache, Storage, open_storage


class ShardSet:
    """An open set of one kind; a subclass calls `read_by` before anything is read.

    Raises:
        UsageError: when it is not a finished set of that kind.
    """

    shards: Shards

    def __init__(self, location: str, kind: Literal["images", "latents"], cache: Cache | None) -> None:
        self.storage: Storage = open_storage(location, cache)
        self.location = location
        with self.closed_on_error():
            self.content = _content(self.storage)
            self.manifest: Manifest = manifest.parse(self.content, f"{location}/{manifest.NAME}", kind)

    def read_by(self, columns: Columns, tombstones: Tombstones | None, arena: Arena | None = None) -> None:
        """Say where the index has what is read, which samples were taken down, and what keeps those that were read."""
        self.shards = Shards(
            storage=self.storage,
            manifest=self.manifest,
            columns=columns,
            tombstones=tombstones or Tombstones(entries=frozenset()),
            arena=arena,
        )

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Leave nothing open when a constructor fails."""
        try:
            yield
        except BaseException:
            self.storage.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.storage.close()
        self.shards.close()

    @property
    def fingerprint(self) -> str:
        """Sha256 of the manifest file: it names the exact bytes of the set."""
        return manifest.digest(self.content)


def _content(storage: Storage) -> bytes:
    try:
        return storage.read(manifest.NAME)
    except Absent:
        raise manifest.unfinished(storage.location) from None


class Leased:
    """The shard and the row of each of some samples, open; and where `preads` finds the shards."""

    def __init__(self, picks: Picks, held: Mapping[int, Mapping[int, Slot]]) -> None:
        self._picks = picks
        self._held = held  # by source and shard

    def __iter__(self) -> Iterator[tuple[Opened, int]]:
        return (self[index] for index in range(len(self._picks.rows)))

    def __getitem__(self, index: int) -> tuple[Opened, int]:
        picks = self._picks
        return self._held[int(picks.sources[index])][int(picks.shards[index])].opened, int(picks.rows[index])

    @property
    def places(self) -> list[int]:
        """The address of each sample's Opened.place."""
        where = zip(self._picks.sources.tolist(), self._picks.shards.tolist(), strict=True)
        return [self._held[source][shard].opened.address for source, shard in where]


One = TypeVar("One", bound=ShardSet)


class Sources(Generic[One]):
    """Several sets as the sources of one stream: the part of a Reader that knows no format."""

    def __init__(self, sets: Sequence[One]) -> None:
        self.sets = sets

    def want(self, shards: Sequence[tuple[int, int]]) -> None:
        """(source, shard) in order of need: fetch and keep these, let go of all others."""
        for number, one in enumerate(self.sets):
            one.shards.keep_only([shard for source, shard in shards if source == number])

    def recheck(self, read: Iterable[tuple[int, int, object]]) -> bool:
        """(source, shard, copy) of bad samples: prove the copies sound or give them up; whether to try again."""
        found = [self.sets[source].shards.recheck(shard, copy) for source, shard, copy in read]
        return any(found)

    def interrupt(self) -> None:
        """End what waits for a storage."""
        for one in self.sets:
            one.storage.close()

    @contextmanager
    def leased(self, picks: Picks) -> Iterator[Leased]:
        """The shard and the row of each picked sample, open until the block ends."""
        wanted = defaultdict(list)
        for source, shard in set(zip(picks.sources.tolist(), picks.shards.tolist(), strict=True)):
            wanted[source].append(shard)
        held: dict[int, dict[int, Slot]] = {source: {} for source in wanted}
        try:
            for source, shards in wanted.items():
                self.sets[source].shards.acquire(shards, held[source])
            yield Leased(picks, held)
        finally:
            for source, slots in held.items():
                self.sets[source].shards.release(slots)

    @property
    def on_disk(self) -> bool:
        """Whether a set lies in a folder, so that `spans` finds something."""
        return not all(remote(one.location) for one in self.sets)

    @contextmanager
    def spans(self, picks: Picks) -> Iterator[Spans]:
        """Where those of the picks lie that are in a folder and sound, sorted; good until the block ends.

        Shards of remote sets are left out: what was just fetched is in memory, and asking would wait for the rest.
        """
        order = np.lexsort((picks.rows, picks.shards, picks.sources))
        sources, shards, rows = picks.sources[order], picks.shards[order], picks.rows[order]
        begins = np.flatnonzero(np.diff(sources, prepend=-1) | np.diff(shards, prepend=-1))
        found = []
        with ExitStack() as leases:
            for source in np.unique(sources).tolist():
                if remote(self.sets[source].location):
                    continue
                mine = sources[begins] == source
                wanted = shards[begins[mine]].tolist()
                held = leases.enter_context(self.sets[source].shards.lease(wanted))
                ends = np.append(begins[1:], len(rows))[mine]
                for shard, begin, end in zip(wanted, begins[mine].tolist(), ends.tolist(), strict=True):
                    size = self.sets[source].manifest.shards[shard].bytes
                    found.append(held[shard].spans(rows[begin:end], size))
            yield joined(found)

    def tar(self, picks: Picks, index: int) -> str:
        """Where the tar of a picked sample is, for messages."""
        return self.sets[int(picks.sources[index])].shards.name(int(picks.shards[index]))
