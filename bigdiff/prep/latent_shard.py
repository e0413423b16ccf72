"""One image shard to one latent shard: decode, encode, write a tar of equal members and its parquet."""

import hashlib
import io
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import index
from bigdiff.data.decoding import Pixels, Undecodable
from bigdiff.data.member import layout, pack
from bigdiff.data.pixels import square
from bigdiff.models.components import token_ids
from bigdiff.models.encoders import decode as decode_latents
from bigdiff.models.encoders import moments
from bigdiff.runtime.files import replacing, sha256

EXTENSION = "safetensors"

Sources = Sequence[tuple[str, int, int]]  # key, offset and length of each image in its tar
Tell = Callable[[int], None]  # told the number of images done, batch by batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """What turns images and captions into samples; the same for every shard of a set."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    resolution: int
    batch: int  # images encoded together; 64 small ones keep the activations in a core's cache
    device: torch.device
    threads: int  # that decode images; 1 decodes between the batches
    least_psnr: float  # dB


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A finished shard, as the manifest and the resume need it."""

    name: str
    samples: int
    bytes: int
    sha256: str
    psnr: float  # dB of the canary's reconstruction
    enlarged: int  # images whose shorter side was below the resolution
    index_sha256: str = ""  # of the parquet


def write_shard(
    images: Path, output: Path, name: str, encoder: Encoder, tell: Tell, ending: str = ".parquet"
) -> Record:
    """Write `output`/`name`.tar and .parquet from `name`.tar and `name``ending` in `images`; the tar comes last.

    Raises:
        UsageError: when the image shard's parquet lacks a column.
        RunError: for a damaged image, a moment beyond float16, or a reconstruction below `least_psnr`.
    """
    table = read_table(images / f"{name}{ending}")
    sources = _sources(table)
    tokens = token_ids(encoder.tokenizer, table["caption"].to_pylist()).numpy().astype(np.uint16)
    digests: list[str] = []
    enlarged, psnr = 0, math.inf
    with replacing(output / f"{name}.tar") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for start, pixels, small in batches(images / f"{name}.tar", sources, encoder):
                stored = encode(encoder, pixels, [key for key, _, _ in sources[start : start + len(pixels)]])
                if start == 0:
                    psnr = canary(encoder, pixels, stored, output / name)
                for row, sample in enumerate(stored, start):
                    content = pack(sample, tokens[row])
                    digests.append(hashlib.sha256(content).hexdigest())
                    _add(archive, f"{sources[row][0]}.{EXTENSION}", content)
                enlarged += small
                tell(len(pixels))
        found = index.scan(temporary)
        _write_table(output / f"{name}.parquet", found.members, table, digests)
        record = Record(
            name=name,
            samples=len(sources),
            bytes=found.bytes,
            sha256=found.sha256,
            psnr=round(psnr, 2),
            enlarged=enlarged,
            index_sha256=sha256(output / f"{name}.parquet"),
        )
    return record


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


def batches(tar: Path, sources: Sources, encoder: Encoder) -> Iterator[tuple[int, Pixels, int]]:
    """(first row, pixels uint8 [B, R, R, 3], enlarged images) of each batch, decoded by `encoder.threads`.

    With several threads one batch is decoded ahead of the one that is encoded.
    """
    descriptor = os.open(tar, os.O_RDONLY)

    def one(source: tuple[str, int, int]) -> tuple[Pixels, bool]:
        key, offset, length = source
        try:
            return square(os.pread(descriptor, length, offset), encoder.resolution)
        except Undecodable as error:
            raise RunError(f"{tar}: image {key} cannot be decoded ({error}); build the image set again") from error

    starts = range(0, len(sources), encoder.batch)
    pool = ThreadPoolExecutor(encoder.threads) if encoder.threads > 1 else None
    try:
        ahead = None
        for start in starts:
            rows = sources[start : start + encoder.batch]
            following = sources[start + encoder.batch : start + 2 * encoder.batch]
            decoded = list(map(one, rows) if pool is None else ahead or pool.map(one, rows))
            ahead = pool.map(one, following) if pool is not None and following else None
            yield start, np.stack([pixels for pixels, _ in decoded]), sum(small for _, small in decoded)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        os.close(descriptor)


@torch.inference_mode()
def encode(encoder: Encoder, pixels: Pixels, keys: Sequence[str]) -> npt.NDArray[np.float16]:
    """Moments float16 [B, 2C, h, w] of uint8 pixels [B, R, R, 3].

    Raises:
        RunError: naming the first sample whose moments float16 cannot hold.
    """
    stored = moments(encoder.vae, _normalised(pixels, encoder.device)).half()
    finite = stored.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        key = keys[int((~finite).nonzero()[0])]
        raise RunError(f"the autoencoder gives sample {key} moments beyond float16's range: choose another autoencoder")
    result: npt.NDArray[np.float16] = stored.cpu().contiguous().numpy()
    return result


@torch.inference_mode()
def canary(encoder: Encoder, pixels: Pixels, stored: npt.NDArray[np.float16], where: Path) -> float:
    """PSNR in dB (peak to peak 2) of what the stored means decode to, against the pixels.

    Raises:
        RunError: below `encoder.least_psnr`: the latents would not be pictures (wrong pixel range, VAE or kernel).
    """
    mean = torch.from_numpy(stored).to(encoder.device, torch.float32).chunk(2, dim=1)[0]
    drawn = decode_latents(encoder.vae, mean * encoder.vae.config["scaling_factor"])
    error = float((drawn - _normalised(pixels, encoder.device)).square().mean())
    psnr = 10 * math.log10(4 / max(error, 1e-12))
    if psnr < encoder.least_psnr:
        raise RunError(
            f"{where}: the first batch comes back from the autoencoder at {psnr:.1f} dB, below {encoder.least_psnr:g} "
            "dB: this autoencoder does not fit these images"
        )
    return psnr


def _normalised(pixels: Pixels, device: torch.device) -> torch.Tensor:
    # [B, H, W, 3] seen as [B, 3, H, W] is channels_last already: no copy
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _sources(table: pa.Table) -> Sources:
    extension = index.picture_member(table.column_names)
    offsets, lengths = (table[f"{extension}_{part}"].to_pylist() for part in ("offset", "length"))
    return list(zip(table["key"].to_pylist(), offsets, lengths, strict=True))


def _index_columns(table: pa.Table) -> set[str]:
    """The columns that locate and describe members of the image shard."""
    found = [name.removesuffix("_offset") for name in table.column_names if name.endswith("_offset")]
    found = [extension for extension in found if f"{extension}_length" in table.column_names]
    return {f"{extension}_{part}" for extension in found for part in (*index.PARTS, "ext")}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and mode are constants: the same samples give the same bytes
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


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


def member_bytes(encoder: Encoder) -> int:
    """Bytes of each sample of the set, header included."""
    channels = 2 * encoder.vae.config["latent_channels"]
    side = encoder.resolution // 2 ** (len(encoder.vae.config["block_out_channels"]) - 1)
    return layout(channels, side, side, encoder.tokenizer.model_max_length).total
