"""Latent shard sets as batches: one `pread` per sample into a reused buffer, checked, and nothing decoded.

The bytes of a member are the tensors (bigdiff.data.member), so a micro-batch is one block of bytes: it is copied to a
device in one piece and looked at there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bigdiff.config.errors import UsageError
from bigdiff.data.arena import Arena
from bigdiff.data.course import Picks
from bigdiff.data.damage import Consumed, Tombstones
from bigdiff.data.member import Form, Layout, layout
from bigdiff.data.preads import preads
from bigdiff.data.sets import ShardSet, Sources
from bigdiff.data.shards import Columns, index_table, unusable
from bigdiff.data.storage import Cache
from bigdiff.data.stream import Bad

COLUMNS = Columns(member="safetensors")
LINE = 64  # bytes of a processor's cache line


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A micro-batch of one process. Its tensors are good until the next batch is asked for."""

    raw: torch.Tensor  # uint8 [B, bytes of a member, and any behind it]
    layout: Layout
    bucket: str  # "WIDTHxHEIGHT" in pixels; "" where the set has one shape
    positions: torch.Tensor  # int64 [B]: where these samples stand in the run
    consumed: Consumed
    wait_seconds: float  # how long the reader kept the caller waiting

    @property
    def moments(self) -> torch.Tensor:
        """fp16 [B, 2C, h, w]: mean and log-variance, unscaled; [B, C, h, w] where `layout.mean` alone is stored."""
        return self.raw[:, self.layout.moments].view(torch.float16).view(-1, *self.layout.shape)

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [B, L]."""
        return self.raw[:, self.layout.tokens].view(torch.uint16).to(torch.int64)

    @property
    def states(self) -> torch.Tensor:
        """fp16 [B, L, D]: the text encoder's output; D is 0 where the set has none."""
        states = self.raw[:, self.layout.states].view(torch.float16)
        return states.view(len(states), self.layout.length, self.layout.width)

    @property
    def mirrored(self) -> torch.Tensor:
        """As `moments`, of the mirrored pictures, where the set stores them."""
        return self.raw[:, self.layout.mirrored].view(torch.float16).view(-1, *self.layout.shape)

    @property
    def crops(self) -> torch.Tensor:
        """fp16 [B, N - 1, 2C, h, w]: as `moments`, of the boxes but the centre in order, where the set stores them."""
        found = self.raw[:, self.layout.crops].view(torch.float16)
        return found.view(len(found), self.layout.boxes - 1, *self.layout.shape)

    @property
    def mirrored_crops(self) -> torch.Tensor:
        """As `crops`, each mirrored, where the set stores them."""
        found = self.raw[:, self.layout.mirrored_crops].view(torch.float16)
        return found.view(len(found), self.layout.boxes - 1, *self.layout.shape)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that `to` moves."""
        return self.raw, self.positions

    def to(self, device: torch.device) -> "Batch":
        """The same on another device, by one copy, asynchronous from a pinned buffer."""
        return replace(
            self,
            raw=self.raw.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
        )


class LatentSet(ShardSet):
    """An open latent shard set. What `arena` keeps of it is read and checked once; it is closed after the set.

    Raises:
        UsageError: when it is not a finished set of latents, or its contract cannot be read.
    """

    def __init__(
        self,
        location: str,
        tombstones: Tombstones | None = None,
        cache: Cache | None = None,
        arena: Arena | None = None,
    ) -> None:
        super().__init__(location, "latents", cache)
        with self.closed_on_error():
            self.layouts = layouts(self.manifest.contract, location)
            self.read_by(COLUMNS, tombstones, arena)

    def key(self, shard: int, row: int) -> str:
        """A sample's key, for messages; reads the index again, so not for the hot path."""
        of = self.manifest.shards[shard]
        index = self.storage.read(of.name + self.manifest.index, of.index_sha256)
        key: str = index_table(index, ["key"])["key"][row].as_py()
        return key


def layouts(contract: dict[str, Any], where: str) -> dict[str, Layout]:
    """How a set's members lie in memory, by bucket.

    Raises:
        UsageError: when the contract does not give the shapes.
    """
    try:
        shapes = contract["buckets"] if "buckets" in contract else {"": contract["shape"]}
        text = contract["text_length"], contract.get("text_states", 0)
        form = Form(
            mean=contract.get("stored") == "mean",
            mirrored=contract.get("mirror") == "stored",
            crops=contract.get("crops", 1),
        )
        return {bucket: layout(*shape, *text, form) for bucket, shape in shapes.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the contract of {where} gives no shape ({error!r}): encode the set again") from error


class Buffer:
    """Memory for samples of any one bucket, pinned where there is a device to copy to."""

    def __init__(self, samples: int, largest: int) -> None:
        self._samples = samples
        pinned = torch.cuda.is_available()
        self._memory = torch.zeros(samples * _pitch(largest), dtype=torch.uint8, pin_memory=pinned)
        # torch's views are kept: each costs 1 us, and while one is made other threads may take the interpreter's lock
        self._targets: dict[int, npt.NDArray[np.uint8]] = {}
        self._rows: dict[tuple[int, int, int], torch.Tensor] = {}

    def target(self, member: int) -> npt.NDArray[np.uint8]:
        """The memory as uint8 [samples, member], for members of this size."""
        if member not in self._targets:
            pitch = _pitch(member)
            rows = self._memory[: self._samples * pitch].view(self._samples, pitch)
            self._targets[member] = rows.numpy()[:, :member]
        return self._targets[member]

    def rows(self, member: int, row: int, count: int) -> torch.Tensor:
        """Some rows of it: uint8 [count, bytes from one member to the next], contiguous."""
        if (member, row, count) not in self._rows:
            pitch = _pitch(member)
            rows = self._memory[row * pitch : (row + count) * pitch].view(count, pitch)
            self._rows[member, row, count] = rows
        return self._rows[member, row, count]


def _pitch(member: int) -> int:
    # whole cache lines: members of 64 KiB are read and hashed 5 to 20 % faster where each begins at one
    return -(-member // LINE) * LINE


class LatentReader(Sources[LatentSet]):
    """Several sets as the sources of one stream.

    Raises:
        UsageError: when sets that share a bucket store different shapes.
    """

    def __init__(self, sets: Sequence[LatentSet]) -> None:
        super().__init__(sets)
        self.layouts: dict[str, Layout] = {}
        for one in sets:
            for bucket, found in one.layouts.items():
                if self.layouts.setdefault(bucket, found) != found:
                    raise UsageError(
                        f"{one.location} stores {found.stored}, {sets[0].location} {self.layouts[bucket].stored}: "
                        f"they cannot share a batch"
                    )

    def hold(self, samples: int) -> Buffer:
        """A buffer for so many samples of any one bucket."""
        return Buffer(samples, max(one.total for one in self.layouts.values()))

    def fill(self, held: Buffer, row: int, position: int, picks: Picks) -> list[Bad]:
        """Read and check the members of `picks` into the rows of the buffer from `row` on."""
        total = self.layouts[picks.bucket].total
        target = held.target(total)[row : row + len(picks.rows)]
        with self.leased(picks) as samples:
            wrong, got = preads(samples.places, picks.rows, target)
            bad = []
            for index in wrong.tolist():
                one, number = samples[index]
                reason, place = unusable(one, number, int(got[index]), total), one.offsets[number] or None
                bad.append(Bad(index=index, copy=one, tar=self.tar(picks, index), offset=place, reason=reason))
        return bad

    def make(self, held: Buffer, row: int, picks: Picks, consumed: Consumed, wait_seconds: float) -> Batch:
        """The batch whose samples are in the buffer from `row` on."""
        found = self.layouts[picks.bucket]
        end = consumed.position + consumed.samples
        return Batch(
            raw=held.rows(found.total, row, consumed.samples),
            layout=found,
            bucket=picks.bucket,
            positions=torch.from_numpy(np.arange(consumed.position, end, dtype=np.int64)),
            consumed=consumed,
            wait_seconds=wait_seconds,
        )
