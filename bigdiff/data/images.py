"""Image shard sets as batches of pixels and captions: read, checked, decoded and framed by the stream's threads.

For training without precomputed latents and for validation: the order, substitution and resume are those of latents
(bigdiff.data.stream), and the pixels those that latents are made of (bigdiff.data.pixels).
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from bigdiff.config.errors import UsageError
from bigdiff.data.course import Picks
from bigdiff.data.damage import Consumed, Tombstones
from bigdiff.data.decoding import Pixels, Undecodable, decode
from bigdiff.data.index import picture_member
from bigdiff.data.manifest import Manifest
from bigdiff.data.pixels import Frame, framed
from bigdiff.data.sets import ShardSet, Sources
from bigdiff.data.shards import Columns, Opened, unusable
from bigdiff.data.storage import Absent, Cache, Corrupt, Storage
from bigdiff.data.stream import Bad
from bigdiff.runtime.seeding import bits

KEY, CAPTION = "key", "caption"
BUCKET: Final = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}", re.ASCII)  # "WIDTHxHEIGHT"
CENTRE: Final = "centre square"  # the crop in the contract of a set whose pictures leave no room for another
MAX_BYTES: Final = 1 << 28  # of a picture's file


def size(bucket: str, where: str) -> tuple[int, int]:
    """Width and height of a bucket of the set `where`.

    Raises:
        UsageError: when it names no size.
    """
    if not BUCKET.fullmatch(bucket):
        raise UsageError(f"bucket {bucket!r} of {where} is no size such as '640x448': build the image set again")
    width, _, height = bucket.partition("x")
    return int(width), int(height)


def sizes(buckets: Iterable[str], where: str) -> tuple[tuple[int, int], ...]:
    """Each width and height among the buckets of a set's shards, in the order of their names; "" is one without.

    Raises:
        UsageError: as `size`.
    """
    return tuple(size(bucket, where) for bucket in sorted({*buckets}) if bucket)


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """How pictures become batches. Crop and flip are drawn from (seed, position in the run), nothing else."""

    resolution: int | None = None  # pixels of the square's side; None for sets whose shards have buckets, which say it
    crop: Literal["center", "random"] = "center"
    flip: float = 0.0  # probability of mirroring
    seed: int = 0

    def size(self, bucket: str) -> tuple[int, int]:
        """Width and height of the pictures of a bucket."""
        if not bucket:
            assert self.resolution is not None, "checked by the reader"
            return self.resolution, self.resolution
        return size(bucket, "the set")

    def frames(self, bucket: str, position: int, count: int) -> list[Frame]:
        """Of the pictures at run positions `position`, ..."""
        width, height = self.size(bucket)
        if self.crop == "center" and not self.flip:
            return [Frame(width=width, height=height)] * count
        positions = torch.arange(position, position + count, dtype=torch.int64)
        centred = self.crop == "center"
        return [
            Frame(
                width=width,
                height=height,
                across=None if centred else across,
                down=None if centred else down,
                mirrored=mirror < self.flip * 2**32,
            )
            for across, down, mirror in bits(self.seed, "framing", positions, 3).tolist()
        ]


def mirrored(seed: int, positions: torch.Tensor, flip: float) -> torch.Tensor:
    """Whether the samples at int64 `positions` are mirrored, bool [B]: for pictures and latents by the same numbers."""
    return bits(seed, "framing", positions, 3)[:, 2] < flip * 2**32


def boxed(seed: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Which of `count` stored boxes the samples at int64 `positions` show, int64 [B]: by the numbers of pictures."""
    return bits(seed, "framing", positions, 3)[:, 0] * count >> 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBatch:
    """A micro-batch of one process. Its pixels are good until the next batch is asked for."""

    pixels: torch.Tensor  # uint8 [B, 3, H, W], channels_last in memory; RGB, 0 to 255
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    bucket: str  # "WIDTHxHEIGHT" in pixels; "" where the set has one shape
    positions: torch.Tensor  # int64 [B]: where these samples stand in the run
    consumed: Consumed
    wait_seconds: float  # how long the reader kept the caller waiting

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that `to` moves."""
        return self.pixels, self.positions

    def to(self, device: torch.device) -> "ImageBatch":
        """The same on another device, asynchronous from a pinned buffer."""
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
        )


class ImageSet(ShardSet):
    """An open image shard set: a folder or an address, made by build_shards or indexed by bigdiff.data.index.

    Raises:
        UsageError: when it is not a finished set of images, or its index locates no pictures.
    """

    def __init__(self, location: str, tombstones: Tombstones | None = None, cache: Cache | None = None) -> None:
        super().__init__(location, "images", cache)
        with self.closed_on_error():
            self.read_by(Columns(member=_member(self.storage, self.manifest), texts=(KEY, CAPTION)), tombstones)


def _member(storage: Storage, content: Manifest) -> str:
    """Under which name the set's indexes locate the pictures, by the first that can be read."""
    for shard in content.shards:
        name = shard.name + content.index
        try:
            known = pq.read_schema(pa.BufferReader(storage.read(name))).names
        except (Absent, Corrupt, pa.ArrowException, OSError):
            continue  # a damaged shard: its samples are substituted when they are met
        found = picture_member(known)
        if found is None:
            raise UsageError(
                f"{storage.location}/{name} has no column such as 'jpg_offset': build the image set again, or index "
                f"it with python -m bigdiff.data.index"
            )
        return found
    raise UsageError(f"no index (*{content.index}) of {storage.location} can be read: build or index the set again")


class ImageBuffer:
    """Memory of a micro-batch of any bucket, pinned where there is a device to copy to."""

    def __init__(self, samples: int, largest: int) -> None:
        self._samples = samples
        self._memory = torch.zeros(samples * largest, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self.captions = [""] * samples
        self.keys = [""] * samples

    def pixels(self, width: int, height: int) -> torch.Tensor:
        """uint8 [samples, height, width, 3], contiguous."""
        return self._memory[: self._samples * height * width * 3].view(self._samples, height, width, 3)


class ImageReader(Sources[ImageSet]):
    """Several sets as the sources of one stream.

    Raises:
        UsageError: when `framing` gives a set without buckets no resolution, or has one that no set uses.
    """

    def __init__(self, sets: Sequence[ImageSet], framing: Framing) -> None:
        super().__init__(sets)
        self.framing = framing
        self.buckets = {bucket for one in sets for bucket in one.manifest.buckets}
        if ("" in self.buckets) != (framing.resolution is not None):
            raise UsageError(
                f"resolution={framing.resolution}, but the shards of {', '.join(one.location for one in sets)} have "
                f"{'no bucket: give a resolution' if '' in self.buckets else 'buckets: leave the resolution out'}"
            )
        sizes(self.buckets, ", ".join(one.location for one in sets))
        if not 0 <= framing.flip <= 1:
            raise UsageError(f"flip={framing.flip} is no probability: it must be from 0 to 1")

    def hold(self, samples: int) -> ImageBuffer:
        """A buffer for so many samples of any one bucket."""
        sizes = [self.framing.size(bucket) for bucket in self.buckets]
        return ImageBuffer(samples, max(width * height * 3 for width, height in sizes))

    def fill(self, held: ImageBuffer, row: int, position: int, picks: Picks) -> list[Bad]:
        """Read, check, decode and frame the pictures of `picks` into the rows of the buffer from `row` on."""
        target: Pixels = held.pixels(*self.framing.size(picks.bucket)).numpy()
        frames = self.framing.frames(picks.bucket, position, len(picks.rows))
        bad = []
        with self.leased(picks) as samples:
            for index, (place, number) in enumerate(samples):
                try:
                    target[row + index] = framed(decode(read(place, number)), frames[index])
                except Undecodable as error:
                    tar, offset = self.tar(picks, index), place.offsets[number] or None
                    bad.append(Bad(index=index, copy=place, tar=tar, offset=offset, reason=error.cause))
                    continue
                held.captions[row + index] = place.texts[CAPTION][number].as_py() or ""
                held.keys[row + index] = place.texts[KEY][number].as_py()
        return bad

    def make(self, held: ImageBuffer, row: int, picks: Picks, consumed: Consumed, wait_seconds: float) -> ImageBatch:
        """The batch whose samples are in the buffer from `row` on."""
        end, rows = consumed.position + consumed.samples, slice(row, row + consumed.samples)
        return ImageBatch(
            pixels=held.pixels(*self.framing.size(picks.bucket))[rows].permute(0, 3, 1, 2),
            captions=tuple(held.captions[rows]),
            keys=tuple(held.keys[rows]),
            bucket=picks.bucket,
            positions=torch.arange(consumed.position, end, dtype=torch.int64),
            consumed=consumed,
            wait_seconds=wait_seconds,
        )


def read(shard: Opened, row: int) -> bytes:
    """A picture's file, checked.

    Raises:
        Undecodable: when it is not what the index says, or was taken down.
    """
    length, content, read = shard.lengths[row], b"", 0
    if shard.damage or shard.dead[row]:
        raise Undecodable(unusable(shard, row, read, length))
    if not 0 < length <= MAX_BYTES:
        raise Undecodable(f"its file has a length of {length} bytes")
    try:
        content = os.pread(shard.descriptor, length, shard.offsets[row])
        read = len(content)
    except OSError as error:
        read = -(error.errno or 0)
    if read != length or xxhash.xxh3_64_intdigest(content) != shard.checksums[row]:
        raise Undecodable(unusable(shard, row, read, length))
    return content
