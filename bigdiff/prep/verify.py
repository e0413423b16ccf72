"""What was downloaded, looked at: each row becomes a sample or gets a cause why not; nothing is lost in between.

The unit of work is one file of img2dataset. Its samples' encoded bytes go end to end into one file, their facts into a
parquet that is written last, so that a unit is done when that exists.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from bigdiff.config.prep import Pack, Prep
from bigdiff.data import index
from bigdiff.prep.buckets import Fit
from bigdiff.prep.captions import clean
from bigdiff.prep.fetch import is_retryable
from bigdiff.prep.layout import PASSES, ROWS, Layout
from bigdiff.prep.parts import causes
from bigdiff.prep.picture import Rejected, encode, fitted, store
from bigdiff.runtime.files import replacing

LOST: Final = "lost by the downloader"
SHOWN: Final = 2  # rejected pictures kept for the report, per unit and cause
SHOWN_SIDE: Final = 96  # pixels
SHOWN_QUALITY: Final = 85
_MEMBER: Final = "jpg"  # img2dataset's name for whatever was fetched
SCORE_TYPES: Final = {
    "similarity": pa.float64(),
    "hash": pa.int64(),
    "pwatermark": pa.float64(),
    "punsafe": pa.float64(),
    "aesthetic": pa.float64(),
    "language": pa.string(),
}
REJECTED_SCHEMA: Final = pa.schema(
    {"row": pa.int64(), "url": pa.string(), "step": pa.string(), "cause": pa.string(), "picture": pa.binary()}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One file of img2dataset."""

    output: Path  # of the job
    part: int
    turn: int  # 0 = first pass, 1 = second
    file: int
    first: int  # its rows in the pass's rows.parquet: first, count
    count: int
    retried: bool  # rows of it that failed for a passing reason were fetched again, and are decided there
    prep: Prep

    @property
    def name(self) -> str:
        """Sorts in the order of the rows, but for those of second passes."""
        return f"{self.part:05d}-{self.turn}-{self.file:05d}"


def units(layout: Layout, prep: Prep) -> list[Unit]:
    """Every unit of a finished download."""
    found = []
    size = prep.download.rows_per_file
    for part, folder in enumerate(sorted(path for path in layout.download.iterdir() if path.is_dir())):
        for turn, name in enumerate(PASSES):
            if not (folder / name / ROWS).exists():
                continue
            rows = pq.read_metadata(folder / name / ROWS).num_rows
            retried = turn == 0 and (folder / PASSES[1] / ROWS).exists()
            found += [
                Unit(
                    output=layout.output,
                    part=part,
                    turn=turn,
                    file=first // size,
                    first=first,
                    count=min(size, rows - first),
                    retried=retried,
                    prep=prep,
                )
                for first in range(0, rows, size)
            ]
    return found


def verify(unit: Unit) -> str:
    """Make the samples of one unit, unless that is done; returns its name."""
    layout = Layout(unit.output)
    final = layout.samples / f"{unit.name}.parquet"
    if final.exists():
        return unit.name
    rows = _metadata(layout, unit)
    samples: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    shown: Counter[str] = Counter()
    with replacing(layout.pictures / unit.name) as temporary, temporary.open("wb") as pictures:
        for row, fetched in _fetched(layout, unit, rows.to_pylist()):
            if isinstance(fetched, str):
                refused.append({**row, "step": "download", "cause": fetched, "picture": None})
                continue
            try:
                content, sample = _sample(row, fetched, unit.prep.pack)
            except Rejected as error:
                shown[error.cause] += 1
                picture = _thumbnail(error.picture) if shown[error.cause] <= SHOWN else None
                refused.append({**row, "step": "verify", "cause": error.cause, "picture": picture})
                continue
            samples.append({**sample, "offset": pictures.tell()})
            pictures.write(content)
    _write(layout.rejected / f"{unit.name}.parquet", refused, REJECTED_SCHEMA)
    _write(final, samples, sample_schema(rows.column_names))
    return unit.name


def by_part(layout: Layout, units: Sequence[Unit], done: Iterable[str]) -> Iterator[str]:
    """What became of each part's pictures, as soon as the last of its `units` is `done`."""
    for part, finished in groupby(zip(units, done, strict=True), lambda pair: pair[0].part):
        samples, refused = 0, Counter[str]()
        for _, name in finished:
            samples += pq.read_metadata(layout.samples / f"{name}.parquet").num_rows
            rejected = pq.read_table(layout.rejected / f"{name}.parquet", columns=["step", "cause"])
            refused.update(row["cause"] for row in rejected.to_pylist() if row["step"] == "verify")
        pictures = samples + refused.total()
        yield f"part {part:05d}: {samples:,} of {pictures:,} pictures are sound{causes('refused', refused)}"


def sample_schema(columns: list[str]) -> pa.Schema:
    """The columns of a sample: its facts, the scores among `columns`, and where its stored bytes lie in the unit."""
    known = {"row": pa.int64(), "key": pa.string(), "caption": pa.string(), "url": pa.string()}
    sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int64())
    scores = {name: SCORE_TYPES[name] for name in columns if name in SCORE_TYPES}
    place = {"sha256": pa.string(), "phash": pa.int64(), "offset": pa.int64(), "length": pa.int64()}
    return pa.schema({**known, **sizes, **scores, **place})


def _metadata(layout: Layout, unit: Unit) -> pa.Table:
    """The selected columns of the unit's rows, in order."""
    asked = pq.read_table(layout.part(unit.part) / PASSES[unit.turn] / ROWS, columns=["row"])
    numbers = asked["row"].slice(unit.first, unit.count).to_pylist()
    span = [("row", ">=", numbers[0]), ("row", "<=", numbers[-1])]
    found = pq.read_table(layout.selected, filters=span)
    if len(found) != len(numbers):  # a second pass: some of the rows between its first and its last
        found = found.filter(pc.is_in(found["row"], value_set=pa.array(numbers, pa.int64())))
    return found


def _fetched(layout: Layout, unit: Unit, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | str]]:
    """Each row with the bytes that were fetched for it, or the cause why not."""
    folder = layout.part(unit.part) / PASSES[unit.turn]
    table = pq.read_table(folder / f"{unit.file:05d}.parquet", columns=["row", "key", "status", "error_message"])
    facts = {fact["row"]: fact for fact in table.to_pylist()}
    tar = folder / f"{unit.file:05d}.tar"
    places = index.places(tar)
    with tar.open("rb") as source:
        for row in rows:
            fact = facts.get(row["row"])
            if fact is None or (fact["status"] == "success" and fact["key"] not in places):
                yield row, LOST  # img2dataset only prints what goes wrong while it writes
            elif fact["status"] == "success":
                offset, length = places[fact["key"]][_MEMBER]
                yield row, os.pread(source.fileno(), length, offset)
            elif not (unit.retried and is_retryable(fact["error_message"])):
                yield row, fact["error_message"]


def _sample(row: dict[str, Any], content: bytes, pack: Pack) -> tuple[bytes, dict[str, Any]]:
    caption = clean(row["caption"], pack.caption_cut)
    if not caption:
        raise Rejected("caption without visible characters")
    stored = store(content, pack)
    return stored.content, {
        **row,
        "key": f"{row['row']:09d}",
        "caption": caption,
        "width": stored.width,
        "height": stored.height,
        "original_width": stored.original_width,
        "original_height": stored.original_height,
        "sha256": sha256(stored.content).hexdigest(),
        "phash": stored.phash,
        "length": len(stored.content),
    }


def _thumbnail(picture: Image.Image | None) -> bytes | None:
    try:
        return None if picture is None else thumbnail(picture)
    except Rejected:  # too long and narrow even for that: the report names its URL
        return None


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG for the report."""
    return encode(fitted(picture, Fit(shapes=((SHOWN_SIDE, SHOWN_SIDE),))), Pack(jpeg_quality=SHOWN_QUALITY))


def _write(final: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with replacing(final) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
