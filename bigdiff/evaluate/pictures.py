"""Sets of pictures by position, whatever they are: files of a folder, an image shard set, what a pipeline draws.

Each has an identity, a sha256 that names its pictures, and a description that another process can open.
"""

import bisect
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Crop
from bigdiff.data import images, manifest
from bigdiff.data.decoding import Undecodable, decode
from bigdiff.evaluate import prompts, sampling, textless
from bigdiff.evaluate.sampling import Sampling
from bigdiff.runtime.files import sha256

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
_THREADS: Final = min(8, os.cpu_count() or 1)  # that read and decode


class Pictures(Protocol):
    """Pictures 0 to `count` - 1, RGB."""

    @property
    def count(self) -> int:
        """How many there are."""

    def identity(self) -> str:
        """A sha256 of the pictures, or of all that they are made of; takes a while."""

    def some(self, begin: int, end: int) -> list[Image.Image]:
        """Those at [begin, end)."""

    def captions(self, begin: int, end: int) -> list[str]:
        """What those show; [] where there are no captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Pictures that lie in `place`: files below a folder, or the samples of an image shard set."""

    place: str
    crop: Crop = "none"  # center: the centre square of each
    prompts: Path | None = None  # of the pictures in the order of their names
    column: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Pictures that a pipeline draws: number k from prompt k, the seed and k."""

    pipeline: Path
    prompts: Path | None
    column: str
    count: int
    settings: Sampling
    dtype: str


Source: TypeAlias = Stored | Drawn


@cache
def opened(source: Source) -> Pictures:
    """The pictures of a description, opened once in a process.

    Raises:
        UsageError: when they cannot be had.
    """
    if isinstance(source, Drawn):
        return _Drawn(source)
    folder = Path(source.place)
    if "://" in source.place:
        raise UsageError(
            f"{source.place} is an address: real pictures are read from this machine's disks; copy the set, or name "
            f"what an earlier evaluation kept of it"
        )
    if (folder / manifest.NAME).is_file():
        return _Shards(source)
    return _Folder(source)


def of_folder(folder: Path) -> list[Path]:
    """The picture files below `folder`, by name.

    Raises:
        UsageError: when there are none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one of pictures, an image set, or statistics")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}): name another folder")
    return found


def digest(folder: Path, files: Sequence[Path]) -> str:
    """Sha256 of the names below `folder`, and of the contents, of `files`, with a progress bar."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        named = zip(files, pool.map(sha256, files), strict=True)
        for file, content in tqdm(
            named, total=len(files), unit=" files", desc=f"checksum of {folder.name}", leave=False
        ):
            whole.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def of_pipeline(folder: Path) -> str:
    """Sha256 of what a pipeline folder computes with: configurations, vocabularies, weights."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".json", ".txt", ".safetensors")
    ]
    return digest(folder, files)


class _Folder:
    """Files below a folder, by name."""

    def __init__(self, source: Stored) -> None:
        self._folder, self._crop = Path(source.place), source.crop
        self._files = of_folder(self._folder)
        self._texts = prompts.read(source.prompts, source.column) if source.prompts else []
        if self._texts and len(self._texts) < len(self._files):
            raise UsageError(
                f"{source.prompts} has {len(self._texts):,} prompts and {self._folder} {len(self._files):,} pictures: "
                f"give a prompt for each, in the order of the files' names"
            )

    @property
    def count(self) -> int:
        return len(self._files)

    def identity(self) -> str:
        return digest(self._folder, self._files)

    def some(self, begin: int, end: int) -> list[Image.Image]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._picture, self._files[begin:end]))

    def captions(self, begin: int, end: int) -> list[str]:
        return self._texts[begin:end]

    def _picture(self, file: Path) -> Image.Image:
        try:
            return cropped(Image.fromarray(decode(file.read_bytes())), self._crop)
        except (OSError, Undecodable) as error:
            raise UsageError(f"{file} is no picture that can be judged ({error}): delete or replace it") from error


class _Shards:
    """An image shard set, shard by shard."""

    def __init__(self, source: Stored) -> None:
        self._set, self._crop = images.ImageSet(source.place), source.crop
        self._ends = list(accumulate(self._set.manifest.sizes.tolist()))

    @property
    def count(self) -> int:
        return self._ends[-1] if self._ends else 0

    def identity(self) -> str:
        return self._set.fingerprint

    def some(self, begin: int, end: int) -> list[Image.Image]:
        return [self._picture(position) for position in range(begin, end)]

    def captions(self, begin: int, end: int) -> list[str]:
        return []

    def _picture(self, position: int) -> Image.Image:
        shard = bisect.bisect_right(self._ends, position)
        row = position - (self._ends[shard - 1] if shard else 0)
        self._set.shards.keep_only([shard])
        try:
            with self._set.shards.lease([shard]) as leased:
                return cropped(Image.fromarray(decode(images.read(leased[shard], row))), self._crop)
        except Undecodable as error:
            raise UsageError(
                f"{self._set.shards.name(shard)}: sample {row} cannot be judged ({error.cause}): rebuild the set"
            ) from error


class _Drawn:
    """What a pipeline makes of prompts, or without any."""

    def __init__(self, source: Drawn) -> None:
        self._source, self.count = source, source.count
        self._texts = prompts.read(source.prompts, source.column) if source.prompts else []
        self._loaded: sampling.Pipeline | None = None

    def identity(self) -> str:
        return of_pipeline(self._source.pipeline)

    def some(self, begin: int, end: int) -> list[Image.Image]:
        if self._loaded is None:
            self._loaded = sampling.load(self._source.pipeline, getattr(torch, self._source.dtype))
        settings = self._source.settings
        try:
            if isinstance(self._loaded, StableDiffusionPipeline):
                return sampling.sample(self._loaded, self._texts[begin:end], settings, begin, bar=False)
            return textless.draw(self._loaded, end - begin, settings, begin, bar=False)
        except UsageError as error:
            raise UsageError(f"--pipeline {self._source.pipeline}: {error}") from error

    def captions(self, begin: int, end: int) -> list[str]:
        return self._texts[begin:end]


def cropped(picture: Image.Image, crop: Crop) -> Image.Image:
    """The centre square of a picture, or all of it."""
    if crop == "none":
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
