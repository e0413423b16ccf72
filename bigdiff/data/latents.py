"""A latent shard set as batches: offsets from the parquet, one `preadv` per sample, threads reading ahead.

Nothing is decoded and no worker process is started: the bytes of a member are the tensors (bigdiff.data.member).
"""

import os
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow.parquet as pq
import torch

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.manifest import Shard
from bigdiff.data.member import Layout, layout
from bigdiff.data.order import Ints, Order

OFFSET, LENGTH = "safetensors_offset", "safetensors_length"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A micro-batch of one process."""

    positions: torch.Tensor  # int64 [B]: where these samples stand in the run
    moments: torch.Tensor  # fp16 [B, 2C, h, w]: mean and log-variance, unscaled
    tokens: torch.Tensor  # int64 [B, L]
    wait_seconds: float  # how long the reader kept the caller waiting


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The part of each global batch that one process reads: micro-batch k starts at k x micro x size + rank x micro."""

    total: int  # samples of a global batch
    micro: int
    rank: int
    size: int


class LatentSet:
    """An open latent shard set; `read` may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest.read(folder, "latents")
        channels, height, width = self.manifest.contract["shape"]
        self.layout: Layout = layout(channels, height, width, self.manifest.contract["text_length"])
        with ExitStack() as opened:
            self._files = [_open(folder, shard, opened) for shard in self.manifest.shards]
            self._offsets = [_offsets(folder, shard, self.layout) for shard in self.manifest.shards]
            self._close = opened.pop_all()

    def __enter__(self) -> "LatentSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def read(self, shards: Ints, rows: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments fp16 [B, 2C, h, w] and tokens int64 [B, L] of the given samples.

        Raises:
            RunError: for a tar that is shorter than its index says.
        """
        raw = np.empty((len(rows), self.layout.total), np.uint8)
        for index, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            got = os.preadv(self._files[shard], [memoryview(raw[index])], int(self._offsets[shard][row]))
            if got != self.layout.total:
                name = self.manifest.shards[shard].name
                raise RunError(
                    f"{self.folder / name}.tar ends inside sample {row} (offset {self._offsets[shard][row]}): "
                    f"the shard is truncated; encode it again"
                )
        moments = raw[:, self.layout.moments].view(np.float16).reshape(len(rows), *self.layout.shape)
        tokens = raw[:, self.layout.tokens].view(np.uint16).astype(np.int64)
        return torch.from_numpy(moments), torch.from_numpy(tokens)

    def keys(self, shards: Ints, rows: Ints) -> list[str]:
        """The samples' keys, for messages; reads the parquet again, so not for the hot path."""
        names = [self.manifest.shards[shard].name for shard in shards]
        tables = {name: pq.read_table(self.folder / f"{name}.parquet", columns=["key"])["key"] for name in set(names)}
        return [tables[name][row].as_py() for name, row in zip(names, rows.tolist(), strict=True)]


def _open(folder: Path, shard: Shard, opened: ExitStack) -> int:
    path = folder / f"{shard.name}.tar"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"cannot open {path}, which the manifest lists ({error.strerror}): encode the set again"
        ) from error
    opened.callback(os.close, descriptor)
    size = os.fstat(descriptor).st_size
    if size != shard.bytes:
        raise UsageError(f"{path} has {size} bytes, the manifest says {shard.bytes}: encode the shard again")
    return descriptor


def _offsets(folder: Path, shard: Shard, members: Layout) -> Ints:
    path = folder / f"{shard.name}.parquet"
    try:
        table = pq.read_table(path, columns=[OFFSET, LENGTH])
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the index {path} ({error}): encode the set again") from error
    if table.num_rows != shard.samples:
        raise UsageError(f"{path} has {table.num_rows} rows, the manifest says {shard.samples}: encode the set again")
    lengths = table[LENGTH].to_numpy()
    if (lengths != members.total).any():
        raise UsageError(f"{path} lists members of other than {members.total} bytes: encode the set again")
    offsets: Ints = table[OFFSET].to_numpy().astype(np.int64)
    return offsets


def batches(
    latents: LatentSet, order: Order, part: Slice, start: int, ahead: tuple[int, int]
) -> Generator[list[Batch], None, None]:
    """From position `start` on, without end: this process's micro-batches of each global batch, in order.

    `ahead` = (global batches read before they are asked for, threads that read them). Closing the generator ends
    the threads.
    """
    depth, threads = ahead
    with ThreadPoolExecutor(threads, thread_name_prefix="latents") as pool:
        pending: deque[list[Future[Batch]]] = deque()
        try:
            while True:
                while len(pending) <= depth:
                    pending.append([pool.submit(_micro, latents, order, at, part.micro) for at in _starts(part, start)])
                    start += part.total
                yield [_waited(future) for future in pending.popleft()]
        finally:
            for step in pending:
                for future in step:
                    future.cancel()


def _starts(part: Slice, start: int) -> range:
    stride = part.micro * part.size
    return range(start + part.rank * part.micro, start + part.total, stride)


def _micro(latents: LatentSet, order: Order, start: int, count: int) -> Batch:
    moments, tokens = latents.read(*order.locate(start, count))
    positions = torch.arange(start, start + count, dtype=torch.int64)
    return Batch(positions=positions, moments=moments, tokens=tokens, wait_seconds=0.0)


def _waited(future: Future[Batch]) -> Batch:
    began = time.perf_counter()
    batch = future.result()
    waited = time.perf_counter() - began
    return Batch(positions=batch.positions, moments=batch.moments, tokens=batch.tokens, wait_seconds=waited)
