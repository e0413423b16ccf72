"""Every knob of data preparation: which rows are wanted, how they are fetched, what is stored.

Values come from a file under `configs/data` and `key=value` arguments. A rule of `Select` whose value is null (or an
empty list) is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, find, load

DEFAULT_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Select:
    """Rules on the metadata; a row whose value is absent does not pass the rule that asks for it."""

    min_width: int | None = None  # pixels of the original, WIDTH >= this
    min_height: int | None = None  # pixels of the original, HEIGHT >= this
    max_aspect: float | None = None  # longer side / shorter side <= this
    aesthetic_above: float | None = None  # score > this
    aesthetic_at_least: float | None = None  # score >= this
    similarity_above: float | None = None  # CLIP similarity of picture and caption > this
    pwatermark_below: float | None = None  # probability of a watermark < this
    punsafe_below: float | None = None  # probability of unsafe content < this
    languages: tuple[str, ...] = ()  # LANGUAGE is one of these
    min_caption_length: int | None = None  # characters
    max_caption_length: int | None = None  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """How pictures are fetched: bounds per picture and per part, opt-outs, what is tried again."""

    processes: int = 2
    threads: int = 32  # connections per process
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
    """What is stored: square RGB pictures and cleaned captions in tars."""

    resolution: int = 512  # pixels of the stored square's side
    min_side: int | None = None  # pixels of the shorter side of the file itself; metadata may be wrong
    max_pixels: int = 100_000_000  # refused from the header, before decoding
    format: Literal["jpg", "png"] = "jpg"
    jpeg_quality: int | None = None  # 1 to 100; null = 95
    caption_cut: int = 1_000  # characters; longer captions are cut
    samples_per_shard: int = 10_000  # at most; the samples are spread evenly over the shards
    seed: int = 0  # of the global shuffle
    processes: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Prep:
    """One preparation job."""

    select: Select = field(default_factory=Select)
    download: Download = field(default_factory=Download)
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
        "download.processes": download.processes,
        "download.threads": download.threads,
        "download.timeout_seconds": download.timeout_seconds,
        "download.deadline_seconds": download.deadline_seconds,
        "download.part_deadline_seconds": download.part_deadline_seconds,
        "download.max_bytes": download.max_bytes,
        "download.rows_per_part": download.rows_per_part,
        "download.rows_per_file": download.rows_per_file,
        "pack.resolution": pack.resolution,
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
    if select.aesthetic_above is not None and select.aesthetic_at_least is not None:
        raise UsageError("select.aesthetic_above and select.aesthetic_at_least are both set: set one to null")
    if download.timeout_seconds > download.deadline_seconds:
        raise UsageError(
            f"download.timeout_seconds={download.timeout_seconds} has no effect above "
            f"download.deadline_seconds={download.deadline_seconds}: lower it"
        )
    return prep
