"""One image shard to one latent shard: decode, encode, write a tar of equal members and its parquet.

Beside a GPU, threads decode the next two batches and write the one before while it works on this one, and a batch's
results are fetched when it has the next: it never waits for the host. On CPU all is done in turn: there the processes
share out the cores (bigdiff.prep.encode_workers).
"""

import hashlib
import math
import os
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from xxhash import xxh3_64_intdigest

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import index
from bigdiff.data.decoding import Pixels, Undecodable, decode
from bigdiff.data.member import pack
from bigdiff.data.pixels import cover, cropped
from bigdiff.models.components import token_ids
from bigdiff.prep import latent_text
from bigdiff.prep.encoder import CANARY, Encoded, Encoder, Half, canary, finish, rounding, start
from bigdiff.prep.latent_figures import Totals
from bigdiff.runtime.files import replacing, sha256

EXTENSION = "safetensors"
AHEAD = 2  # batches that threads decode before they are asked for: while the last of one is slow, others begin the next

Sources = Sequence[tuple[str, int, int]]  # key, offset and length of each image in its tar
Tell = Callable[[int], None]  # told the number of images done, batch by batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A finished shard, as the manifest and the resume need it."""

    name: str
    samples: int
    bytes: int
    sha256: str
    psnr: float  # dB of the canary's reconstruction
    enlarged: int  # images that were smaller than what is shown of them
    mean: float | None = None  # of the latents, unscaled; None from a version that did not look
    std: float | None = None
    spread: float = 0.0  # the widest batch's, where the mean alone is stored
    index_sha256: str = ""  # of the parquet
    cropped: int = 0  # images of which some is left beside what is shown
    rounding: float = 0.0  # by half precision, of the first pictures' posterior


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A batch of pictures in all their boxes."""

    start: int  # row of the first
    boxes: torch.Tensor  # uint8 [N, B, H, W, 3]
    enlarged: int  # of them
    cropped: int  # of them

    @property
    def shown(self) -> torch.Tensor:
        """The centre, [B, H, W, 3]."""
        return self.boxes[len(self.boxes) // 2]

    @property
    def others(self) -> tuple[torch.Tensor, ...]:
        """The other boxes in order."""
        middle = len(self.boxes) // 2
        return *self.boxes[:middle], *self.boxes[middle + 1 :]


def write_shard(
    images: Path, output: Path, name: str, encoder: Encoder, tell: Tell, ending: str = ".parquet"
) -> Record:
    """Write `output`/`name`.tar and .parquet from `name`.tar and `name``ending` in `images`; the tar comes last.

    Raises:
        UsageError: when the image shard's parquet lacks a column.
        RunError: for a damaged image, a moment beyond float16, or a reconstruction below `least_psnr`.
    """
    table = read_table(images / f"{name}{ending}")
    sources = places(table)
    enlarged, room, psnr, spread, moved, totals = 0, 0, math.inf, 0.0, 0.0, Totals()
    with replacing(output / f"{name}.tar") as temporary:
        with Members(temporary, encoder) as members:
            for batch, made in _encoded(images / f"{name}.tar", sources, table["caption"].to_pylist(), encoder):
                shown, stored = batch.shown, made.stored
                keys = [key for key, _, _ in sources[batch.start : batch.start + len(shown)]]
                if batch.start == 0:
                    psnr = canary(encoder, shown[:CANARY], stored.moments[:CANARY], output / name)
                    moved = rounding(encoder, shown[:CANARY], keys)
                members.add(keys, stored, made.tokens, made.states)
                totals.add(stored.moments[:, : encoder.vae.config["latent_channels"]])
                enlarged, room, spread = enlarged + batch.enlarged, room + batch.cropped, max(spread, stored.spread)
                tell(len(shown))
        _write_table(output / f"{name}.parquet", members.found, table, members.digests)
        record = Record(
            name=name,
            samples=len(sources),
            bytes=members.bytes,
            sha256=members.sha256,
            psnr=round(psnr, 2),
            enlarged=enlarged,
            mean=totals.mean,
            std=totals.std,
            spread=float(f"{spread:.3g}"),
            index_sha256=sha256(output / f"{name}.parquet"),
            cropped=room,
            rounding=float(f"{moved:.3g}"),
        )
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """What is stored of a batch."""

    stored: Encoded
    tokens: npt.NDArray[np.uint16]
    states: Half | None


def _encoded(tar: Path, sources: Sources, captions: Sequence[str], encoder: Encoder) -> Iterator[tuple[Decoded, _Made]]:
    """Each batch and what is made of it, while the device has the next one already."""
    begun: deque[tuple[Decoded, Callable[[], _Made]]] = deque()
    with closing(batches(tar, sources, encoder)) as decoded:
        for batch in decoded:
            begun.append((batch, _begun(batch, sources, captions, encoder)))
            if len(begun) > 1:
                before, made = begun.popleft()
                yield before, made()
    for before, made in begun:
        yield before, made()


def _begun(batch: Decoded, sources: Sources, captions: Sequence[str], encoder: Encoder) -> Callable[[], _Made]:
    """Start a batch; what is given waits for it."""
    rows = slice(batch.start, batch.start + len(batch.shown))
    tokens = token_ids(encoder.tokenizer, list(captions[rows])).numpy().astype(np.uint16)
    keys = [key for key, _, _ in sources[rows]]
    started, text = start(encoder, batch.shown, batch.others), latent_text.start(encoder, tokens)
    return lambda: _Made(stored=finish(encoder, started, keys), tokens=tokens, states=latent_text.finish(text))


class Members:
    """A tar that is written batch by batch, at once, or with several threads behind the caller by at most two.

    Its checksums and places are taken while it is written: nothing is read again. Same samples, same bytes: time, owner
    and mode are constants.
    """

    def __init__(self, tar: Path, encoder: Encoder) -> None:
        self.found: index.Members = {}
        self.digests: list[str] = []  # sha256 of each member so far
        self.bytes = 0
        self._sha256, self._mean_only = hashlib.sha256(), encoder.mean_only
        self._file = tar.open("wb", buffering=1 << 20)
        self._thread = ThreadPoolExecutor(1) if encoder.threads > 1 else None
        self._pending: list[Future[None]] = []

    @property
    def sha256(self) -> str:
        """Of what is written."""
        return self._sha256.hexdigest()

    def add(self, keys: Sequence[str], stored: Encoded, tokens: npt.NDArray[np.uint16], states: Half | None) -> None:
        """A member for each key."""
        if self._thread is None:
            self._add(keys, stored, tokens, states)
            return
        self._pending.append(self._thread.submit(self._add, keys, stored, tokens, states))
        if len(self._pending) > 2:
            self._pending.pop(0).result()

    def _add(self, keys: Sequence[str], stored: Encoded, tokens: npt.NDArray[np.uint16], states: Half | None) -> None:
        for row, key in enumerate(keys):
            text = None if states is None else states[row]
            other = None if stored.mirrored is None else stored.mirrored[row]
            crops = [boxes[row] for boxes in stored.crops]
            content = pack(stored.moments[row], tokens[row], text, other, self._mean_only, crops)
            member = tarfile.TarInfo(f"{key}.{EXTENSION}")
            member.size = len(content)
            self._put(member.tobuf(tarfile.USTAR_FORMAT))
            self.found[key] = {EXTENSION: index.Member(self.bytes, len(content), xxh3_64_intdigest(content))}
            self.digests.append(hashlib.sha256(content).hexdigest())
            self._put(content)
            self._put(bytes(-len(content) % tarfile.BLOCKSIZE))

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.bytes += len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            with self._thread or nullcontext():
                for one in self._pending:
                    one.result()
            end = 2 * tarfile.BLOCKSIZE  # of zeros, and up to a whole record
            self._put(bytes(end + -(self.bytes + end) % tarfile.RECORDSIZE))


def read_table(path: Path) -> pa.Table:
    """The image shard's parquet.

    Raises:
        UsageError: when it cannot be read, or has no key, caption or image column.
    """
    try:
        table = pq.read_table(path, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {path} ({error}): build the image set again") from error
    for column in ("key", "caption"):
        if column not in table.column_names:
            raise UsageError(f"{path} has no column {column!r}: it is not the parquet of an image shard")
    if index.picture_member(table.column_names) is None:
        raise UsageError(f"{path} has no column such as 'jpg_offset': build the image set again, with its index")
    return table


def batches(tar: Path, sources: Sources, encoder: Encoder) -> Generator[Decoded, None, None]:
    """The pictures in turn, decoded by `encoder.threads`, each once for all its boxes.

    With several threads `AHEAD` batches are decoded ahead of the one that is encoded, into pinned memory.
    """
    descriptor, frame, frames = os.open(tar, os.O_RDONLY), encoder.frame, encoder.frames

    def one(source: tuple[str, int, int], target: Pixels) -> tuple[bool, bool]:
        key, offset, length = source
        try:
            pixels = decode(os.pread(descriptor, length, offset))
            covering = cover(pixels, frame.width, frame.height)
        except Undecodable as error:
            raise RunError(f"{tar}: image {key} cannot be decoded ({error}); build the image set again") from error
        for box, part in enumerate(frames):
            target[box] = cropped(covering, part)
        small = pixels.shape[0] < frame.height or pixels.shape[1] < frame.width
        return small, covering.shape[:2] != (frame.height, frame.width)

    pool = ThreadPoolExecutor(encoder.threads) if encoder.threads > 1 else None

    def begun(first: int) -> tuple[torch.Tensor, Iterator[tuple[bool, bool]]]:
        rows = sources[first : first + encoder.batch]
        shape = (len(frames), len(rows), frame.height, frame.width, 3)
        boxes = torch.empty(shape, dtype=torch.uint8, pin_memory=encoder.device.type == "cuda")
        return boxes, (map if pool is None else pool.map)(one, rows, boxes.numpy().swapaxes(0, 1))

    try:
        left = deque(range(0, len(sources), encoder.batch))
        ahead = deque((first, *begun(first)) for first in _taken(left, 1 if pool is None else AHEAD))
        while ahead:
            first, boxes, told = ahead.popleft()
            found = list(told)
            ahead.extend((later, *begun(later)) for later in _taken(left, 1))
            enlarged, room = (sum(each) for each in zip(*found, strict=True))
            yield Decoded(start=first, boxes=boxes, enlarged=enlarged, cropped=room)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _taken(left: "deque[int]", count: int) -> list[int]:
    return [left.popleft() for _ in range(min(count, len(left)))]


def places(table: pa.Table) -> Sources:
    """Key, offset and length of each picture of a shard's parquet."""
    extension = index.picture_member(table.column_names)
    offsets, lengths = (table[f"{extension}_{part}"].to_pylist() for part in ("offset", "length"))
    return list(zip(table["key"].to_pylist(), offsets, lengths, strict=True))


def _index_columns(table: pa.Table) -> set[str]:
    """The columns that locate and describe members of the image shard."""
    return {f"{end}_{part}" for end in index.located(table.column_names) for part in (*index.PARTS, "ext")}


def _write_table(final: Path, found: index.Members, table: pa.Table, digests: list[str]) -> None:
    """The image shard's columns without its offsets, and where each latent member lies."""
    keys = table["key"].to_pylist()
    placed = index.columns(keys, found)
    steps = np.diff(placed[f"{EXTENSION}_offset"])
    assert len(set(placed[f"{EXTENSION}_length"])) == 1, f"members of {final} differ in size"
    assert (steps == steps[:1]).all(), f"members of {final} are not evenly spaced"
    kept = [column for column in table.column_names if column not in _index_columns(table) | {"sha256"}]
    result = table.select(kept).append_column("sha256", pa.array(digests))
    for column, values in placed.items():
        result = result.append_column(column, pa.array(values))
    with replacing(final) as temporary:
        pq.write_table(result.replace_schema_metadata(None), temporary)
