"""A folder of pictures as an image shard set: the short way into training, without metadata and downloads.

All JPEG, PNG and WebP files below the folder, in an order that the seed shuffles, so that a window of shards is as
mixed as the whole. A file's bytes go into the tar as they are. The caption is that of a `.txt` file of the same name
beside it, or empty. The manifest comes last.
"""

import io
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.data import index, manifest
from bigdiff.data.decoding import Undecodable, decode
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.runtime.files import replacing, sha256

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
MEMBER: Final = "image"  # as the index names the pictures, whatever their formats


def pack(folder: Path, output: Path, per_shard: int, seed: int, say: Callable[[str], None]) -> Manifest:
    """Write the set of the pictures below `folder` to `output`; pictures that cannot be decoded are left out and said.

    Raises:
        UsageError: when there are no pictures, or `output` is there already and is not empty.
    """
    if per_shard <= 0:
        raise UsageError(f"per_shard={per_shard} must be positive")
    files = find(folder, output)
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty: choose another --output, or delete it")
    output.mkdir(parents=True, exist_ok=True)
    random.Random(seed).shuffle(files)
    left_out: Counter[str] = Counter()
    shards: list[Shard] = []
    with tqdm(total=len(files), unit=" images", desc="pack") as bar:
        for begin in range(0, len(files), per_shard):
            part = files[begin : begin + per_shard]
            shard = write_shard(folder, part, output / f"{len(shards):05d}", left_out)
            shards += [shard] if shard.samples else []
            bar.update(len(part))
    for reason, count in sorted(left_out.items()):
        say(f"left out: {count:,} files: {reason}")
    if not shards:
        raise UsageError(f"no picture below {folder} can be decoded: is it the folder that you mean?")
    made = Manifest(kind="images", shards=tuple(shards), lineage={"folder": str(folder), "seed": seed})
    manifest.write(output, made)
    return made


def find(folder: Path, output: Path) -> list[Path]:
    """The picture files below `folder`, by name, without those of `output`.

    Raises:
        UsageError: when there are none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name the one that holds the pictures")
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in found if output not in path.parents]
    if not found:
        raise UsageError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}): name another folder")
    return found


def write_shard(folder: Path, files: list[Path], stem: Path, left_out: Counter[str]) -> Shard:
    """Write `stem`.tar and .parquet of those `files` that are pictures; counts the others by reason."""
    rows: list[dict[str, str]] = []
    with replacing(stem.with_suffix(".tar")) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for file in files:
                content = file.read_bytes()
                try:
                    decode(content)
                except Undecodable as error:
                    left_out[error.cause] += 1
                    continue
                key = f"{stem.name}{len(rows):06d}"
                caption = text_beside(file)
                for suffix, data in ((file.suffix[1:].lower(), content), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                rows.append({"key": key, "caption": caption, "url": file.relative_to(folder).as_posix()})
        found = index.scan(temporary)
    with replacing(stem.with_suffix(".parquet")) as temporary:
        pq.write_table(table(rows, found.members), temporary)
    return Shard(
        name=stem.name,
        samples=len(rows),
        bytes=found.bytes,
        sha256=found.sha256,
        index_sha256=sha256(stem.with_suffix(".parquet")),
    )


def text_beside(file: Path) -> str:
    """The caption in the `.txt` file of the same name, stripped; "" without one.

    Raises:
        UsageError: when it is not UTF-8.
    """
    text = file.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    except UnicodeDecodeError as error:
        raise UsageError(f"{text} is not UTF-8: write the caption in UTF-8, or delete the file") from error


def table(rows: list[dict[str, str]], members: index.Members) -> pa.Table:
    """The shard's index: key, caption, file below the folder, and where its picture lies."""
    pictures = [next(one for end, one in members[row["key"]].items() if end != "txt") for row in rows]
    return pa.table(
        {
            **{name: pa.array([row[name] for row in rows], pa.string()) for name in ("key", "caption", "url")},
            f"{MEMBER}_offset": pa.array([one.offset for one in pictures], pa.int64()),
            f"{MEMBER}_length": pa.array([one.length for one in pictures], pa.int64()),
            f"{MEMBER}_xxh3": pa.array([one.xxh3 for one in pictures], pa.uint64()),
        }
    )
