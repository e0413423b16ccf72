"""Every knob of data preparation: which rows are wanted, how they are fetched, what is stored.

Values come from a file under `configs/data` and `key=value` arguments. A rule of `Select` whose value is null (or an
empty list) is off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from bigdiff.config.dedup import Dedup, check_dedup
from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, find, load
from bigdiff.config.scoring import Scoring, check_scoring

DEFAULT_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The input's column for each of ours, where it is not one of the names that are known (bigdiff.prep.metadata).

    Scores of other detectors than LAION's are only read when they are named here: they are other quantities, and the
    set's manifest then says which one it was.
    """

    url: str | None = None
    caption: str | None = None
    width: str | None = None
    height: str | None = None
    similarity: str | None = None
    hash: str | None = None
    pwatermark: str | None = None
    punsafe: str | None = None
    aesthetic: str | None = None
    language: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Select:
    """Rules on the metadata; a row whose value is absent does not pass the rule that asks for it."""

    columns: Columns = field(default_factory=Columns)
    # LAION's raw sets hold the height under WIDTH and the width under HEIGHT. auto: what the URLs that name their size
    # say. It only matters where min_width and min_height differ.
    swapped_sizes: Literal["auto", "always", "never"] = "auto"
    min_width: int | None = None  # pixels of the original, WIDTH >= this
    min_height: int | None = None  # pixels of the original, HEIGHT >= this
    max_aspect: float | None = None  # longer side / shorter side <= this
    aesthetic_above: float | None = None  # score > this
    aesthetic_at_least: float | None = None  # score >= this
    similarity_above: float | None = None  # CLIP similarity of picture and caption > this
    similarity_at_least: float | None = None  # the same >= this
    pwatermark_below: float | None = None  # probability of a watermark < this
    pwatermark_at_most: float | None = None  # the same <= this
    punsafe_below: float | None = None  # probability of unsafe content < this
    languages: tuple[str, ...] = ()  # LANGUAGE is one of these
    min_caption_length: int | None = None  # characters
    max_caption_length: int | None = None  # characters
    # GB (1e9 bytes) that the query engine may hold before it spills to disk; the process itself takes some 0.5 GB more.
    # null = 80 % of the machine's, or of the control group's: too much where others compute too.
    memory_gb: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """How pictures are fetched: bounds per picture and per part, opt-outs, what is tried again."""

    # Who starts the processes: `processes` of them here, or one on each core of Spark's executors, which must see the
    # same folders. The set's bytes are the same.
    distributor: Literal["multiprocessing", "pyspark"] = "multiprocessing"
    spark_master: str | None = None  # such as local[4], spark://host:7077, yarn; null = as Spark itself is configured
    processes: int = 2
    threads: int = 32  # connections per process
    per_host: int = 8  # of them to one host at a time; its other URLs wait, which costs them no time of theirs
    timeout_seconds: float = 10.0  # of a connection that says nothing
    deadline_seconds: float = 30.0  # of one picture, redirects included, however steadily it drips
    part_deadline_seconds: float = 86_400.0  # of one part; its processes are ended after that
    retries: int = 2  # tries in a second pass over what may pass: 408, 425, 429, 5xx, time-outs; 0 = no second pass
    max_retry_after_seconds: float = 30.0  # a server's Retry-After is honoured up to this
    max_bytes: int = 50_000_000  # of one picture's file
    max_redirects: int = 5
    allow_private_addresses: bool = False  # loopback and private networks: a URL list could reach into yours
    user_agent_token: str = "bigdiff"  # named to servers; their "bigdiff: noai" is obeyed
    optout_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "none", "noml")
    optout_tdm_reservation: bool = True  # obey `tdm-reservation: 1` (W3C TDM Reservation Protocol)
    rows_per_part: int = 1_000_000  # rows of one img2dataset run
    rows_per_file: int = 5_000  # rows of one file of a part: what a killed process fetches again


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """What is stored: RGB pictures, square unless they are told otherwise, and cleaned captions in tars."""

    resolution: int = 512  # pixels of the stored square's side; of the shorter side with crop=none
    # none: whole pictures, so that data.crop=random and the latents' --crops have something to choose from
    crop: Literal["center", "none"] = "center"
    bucket_step: int | None = None  # pixels; set, pictures keep their aspect: shapes of that area, sides of this step
    bucket_max_aspect: float | None = None  # of a bucket's longer side to its shorter one; null = 2
    min_side: int | None = None  # pixels of the shorter side of the file itself; metadata may be wrong
    max_pixels: int = 100_000_000  # refused from the header, before decoding
    format: Literal["jpg", "png"] = "jpg"
    jpeg_quality: int | None = None  # 1 to 100; null = 95
    caption_cut: int = 1_000  # characters; longer captions are cut
    samples_per_shard: int = 10_000  # at most; the samples are spread evenly over the shards
    seed: int = 0  # of the global shuffle
    takedown: str = ""  # text file of keys, URLs or sha256 that must not be in the set, one a line
    processes: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Prep:
    """One preparation job."""

    select: Select = field(default_factory=Select)
    download: Download = field(default_factory=Download)
    score: Scoring = field(default_factory=Scoring)
    dedup: Dedup = field(default_factory=Dedup)
    pack: Pack = field(default_factory=Pack)


def load_prep(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> Prep:
    """The preparation `name` (a file under configs/data, or a path to one).

    Raises:
        UsageError: for an unknown file, or anything `load` or `check` refuses.
    """
    return check(load(Prep, [find(name, configs / "data", "data")], overrides))


def check(prep: Prep) -> Prep:
    """`prep` itself when every value can have an effect.

    Raises:
        UsageError: naming the first key that cannot be used.
    """
    download, pack = prep.download, prep.pack
    positive: dict[str, float | None] = {
        "select.memory_gb": prep.select.memory_gb,
        "download.processes": download.processes,
        "download.threads": download.threads,
        "download.per_host": download.per_host,
        "download.timeout_seconds": download.timeout_seconds,
        "download.deadline_seconds": download.deadline_seconds,
        "download.part_deadline_seconds": download.part_deadline_seconds,
        "download.max_bytes": download.max_bytes,
        "download.rows_per_part": download.rows_per_part,
        "download.rows_per_file": download.rows_per_file,
        "pack.resolution": pack.resolution,
        "pack.bucket_step": pack.bucket_step,
        "pack.min_side": pack.min_side,
        "pack.max_pixels": pack.max_pixels,
        "pack.caption_cut": pack.caption_cut,
        "pack.samples_per_shard": pack.samples_per_shard,
        "pack.processes": pack.processes,
    }
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{key} is {value}: it must be above 0")
    for key, number in {"retries": download.retries, "max_redirects": download.max_redirects}.items():
        if number < 0:
            raise UsageError(f"download.{key} is {number}: it must be 0 or above")
    return _check_together(prep)


def _check_together(prep: Prep) -> Prep:
    select, download, pack = prep.select, prep.download, prep.pack
    if pack.format == "png" and pack.jpeg_quality is not None:
        raise UsageError("pack.jpeg_quality has no effect with pack.format=png: set it to null")
    if pack.jpeg_quality is not None and not 1 <= pack.jpeg_quality <= 100:
        raise UsageError(f"pack.jpeg_quality is {pack.jpeg_quality}: it must be from 1 to 100")
    _check_buckets(pack)
    _check_select(select)
    check_scoring(prep.score)
    check_dedup(prep.dedup, prep.score)
    _check_distributor(download)
    if download.timeout_seconds > download.deadline_seconds:
        raise UsageError(
            f"download.timeout_seconds={download.timeout_seconds} has no effect above "
            f"download.deadline_seconds={download.deadline_seconds}: lower it"
        )
    return prep


def _check_distributor(download: Download) -> None:
    if download.distributor == "pyspark":
        if download.processes != Download().processes:
            raise UsageError(
                f"download.processes={download.processes} has no effect with download.distributor=pyspark, where the "
                "cores of Spark's executors decide: remove it"
            )
    elif download.spark_master is not None:
        raise UsageError(
            f"download.spark_master={download.spark_master} has no effect without download.distributor=pyspark: "
            "set that, or remove it"
        )


def _check_buckets(pack: Pack) -> None:
    if pack.bucket_step is None:
        if pack.bucket_max_aspect is not None:
            raise UsageError("pack.bucket_max_aspect has no effect without pack.bucket_step: set that, or remove it")
    elif pack.crop == "none":
        raise UsageError(
            f"pack.bucket_step={pack.bucket_step} crops pictures to a bucket's shape, and pack.crop=none stores them "
            "whole: remove one of the two"
        )
    elif pack.resolution % pack.bucket_step:
        raise UsageError(f"pack.bucket_step={pack.bucket_step} does not divide pack.resolution={pack.resolution}")
    elif pack.bucket_max_aspect is not None and not pack.bucket_max_aspect >= 1:
        raise UsageError(f"pack.bucket_max_aspect is {pack.bucket_max_aspect}: it must be 1 or above")


def _check_select(select: Select) -> None:
    pairs = {
        "aesthetic_above": "aesthetic_at_least",
        "similarity_above": "similarity_at_least",
        "pwatermark_below": "pwatermark_at_most",
    }
    for one, other in pairs.items():
        if getattr(select, one) is not None and getattr(select, other) is not None:
            raise UsageError(f"select.{one} and select.{other} are both set: set one to null")
    for bound in fields(select):
        value = getattr(select, bound.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"select.{bound.name} is {value}: give a finite number, or null to turn it off")
    if select.swapped_sizes != "auto" and select.min_width == select.min_height:
        raise UsageError(
            f"select.swapped_sizes={select.swapped_sizes} has no effect while select.min_width and select.min_height "
            "are equal: set it to auto"
        )
    least, most = select.min_caption_length, select.max_caption_length
    if least is not None and most is not None and least > most:
        raise UsageError("select.min_caption_length is above select.max_caption_length: no caption can pass both")
