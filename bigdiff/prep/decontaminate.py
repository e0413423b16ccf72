"""Samples that an evaluation would find again: pictures that look like one of its own, captions that are one of its.

Evaluation pictures are fitted as the set's samples are, cropped to its shapes or whole, before they are hashed, or the
two hashes would show different parts. Captions are equal when they are after NFKC, case folding, and punctuation and
spaces made one space.
"""

import csv
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.errors import UsageError
from bigdiff.prep import near
from bigdiff.prep.buckets import Fit
from bigdiff.prep.metadata import COLUMNS
from bigdiff.prep.phash import flat_sql, is_flat, phash
from bigdiff.prep.picture import Rejected, decode, fitted
from bigdiff.runtime.files import sha256
from bigdiff.runtime.workers import Spread

PICTURE: Final = "picture of the evaluation set"
CAPTION: Final = "caption of the evaluation set"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_FILES_A_TASK: Final = 64
_BATCH: Final = 50_000  # captions


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """The evaluation's pictures, as they are compared."""

    files: tuple[str, ...]  # relative to the folder, sorted
    hashes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was compared and what was found."""

    pictures: int  # of the evaluation
    flat: int  # of them, whose hash says too little to be compared
    captions: int  # of the evaluation, different ones
    picture_rows: int  # samples dropped for their picture
    caption_rows: int  # samples dropped for their caption alone


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Files to hash."""

    folder: Path
    files: tuple[str, ...]
    fit: Fit
    max_pixels: int


def fingerprint(pictures: Path | None, captions: Path | None) -> dict[str, str]:
    """What is compared against, for the lineage: sha256 of the captions' file, and of all pictures' names and sha256.

    Raises:
        UsageError: for a folder without pictures, or a file that is not there.
    """
    found = {}
    if pictures is not None:
        sums = {name: sha256(pictures / name) for name in files(pictures)}
        found["evaluation_pictures"] = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    if captions is not None:
        if not captions.is_file():
            raise UsageError(f"{captions} is no file: name a .txt, .csv or .parquet of captions")
        found["evaluation_captions"] = sha256(captions)
    return found


def files(folder: Path) -> tuple[str, ...]:
    """The picture files at and below `folder`, by their suffix, relative to it, sorted; links are not followed.

    Raises:
        UsageError: when there are none, or a folder cannot be listed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name a folder of pictures")
    found = []
    for at, _, names in os.walk(folder, onerror=_unlisted):
        paths = (Path(at) / name for name in names if name.lower().endswith(SUFFIXES))
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file() and not path.is_symlink()]
    if not found:
        raise UsageError(f"{folder} has no pictures ({' '.join(SUFFIXES)}; links are not followed)")
    return tuple(sorted(found))


def read(folder: Path, fit: Fit, max_pixels: int, workers: Spread) -> Pictures:
    """The hash of each picture of `folder`, fitted as the set's samples are before they are stored.

    Raises:
        UsageError: as `files`, and for a file that is no picture, damaged, or too long and narrow to be fitted.
    """
    names = files(folder)
    tasks = [
        _Task(folder=folder, files=names[first : first + _FILES_A_TASK], fit=fit, max_pixels=max_pixels)
        for first in range(0, len(names), _FILES_A_TASK)
    ]
    hashes = [value for part in workers.each(hashed, tasks, "hashing the evaluation") for value in part]
    return Pictures(files=names, hashes=tuple(hashes))


def hashed(task: _Task) -> list[int]:
    """The hashes of a task's files."""
    found = []
    for name in task.files:
        try:
            picture = fitted(decode((task.folder / name).read_bytes(), task.max_pixels), task.fit)
        except (Rejected, OSError) as error:
            why = error.cause if isinstance(error, Rejected) else error.strerror
            raise UsageError(f"{task.folder / name} cannot be read ({why}): mend it or take it away") from error
        found.append(phash(picture))
    return found


def contaminated(
    base: duckdb.DuckDBPyConnection, samples: str, pictures: Pictures | None, distance: int, captions: Path | None
) -> Outcome:
    """Make the table contaminated (row, cause, of): the samples to drop, and which file or caption of the evaluation.

    `samples` has a row per sample: row, phash, caption. Of several alike pictures the nearest is named, then the first.
    A sample with both is dropped for its picture.

    Raises:
        UsageError: for a file of captions that cannot be read.
        RunError: as `near.search`.
    """
    base.execute("CREATE OR REPLACE TEMP TABLE contaminated (row BIGINT, cause VARCHAR, of VARCHAR)")
    if pictures is not None:
        _pictures(base, samples, pictures, distance)
    ((picture_rows,),) = base.execute("SELECT count(*) FROM contaminated").fetchall()
    wanted = {} if captions is None else read_captions(captions)
    if captions is not None:
        _captions(base, samples, wanted)
    ((rows,),) = base.execute("SELECT count(*) FROM contaminated").fetchall()
    return Outcome(
        pictures=0 if pictures is None else len(pictures.files),
        flat=0 if pictures is None else sum(map(is_flat, pictures.hashes)),
        captions=len(wanted),
        picture_rows=picture_rows,
        caption_rows=rows - picture_rows,
    )


def _pictures(base: duckdb.DuckDBPyConnection, samples: str, pictures: Pictures, distance: int) -> None:
    given = pa.table({"hash": pa.array(pictures.hashes, pa.int64()), "file": pa.array(pictures.files, pa.string())})
    base.register("evaluation_given", given)
    base.execute(
        f"""CREATE OR REPLACE TEMP TABLE evaluation AS SELECT hash, min(file) AS file FROM evaluation_given
        WHERE NOT {flat_sql("hash")} GROUP BY hash"""
    )
    base.unregister("evaluation_given")
    base.execute(
        f"CREATE OR REPLACE TEMP TABLE evaluated AS SELECT DISTINCT phash AS hash FROM {samples} "
        f"WHERE NOT {flat_sql('phash')}"
    )
    near.pairs(base, "evaluated", "evaluation", distance, "evaluation_pairs")
    base.execute(
        f"""INSERT INTO contaminated SELECT sample.row, '{PICTURE}', file FROM {samples} sample JOIN (
            SELECT one, arg_min(file, (bit_count(xor(one, other)), file)) AS file
            FROM evaluation_pairs JOIN evaluation ON hash = other GROUP BY one
        ) ON one = sample.phash ORDER BY sample.row"""
    )
    for table in ("evaluation", "evaluated", "evaluation_pairs"):
        base.execute(f"DROP TABLE {table}")


def _captions(base: duckdb.DuckDBPyConnection, samples: str, wanted: dict[str, str]) -> None:
    rows, of = [], []
    asked = base.execute(
        f"SELECT row, caption FROM {samples} WHERE row NOT IN (SELECT row FROM contaminated) ORDER BY row"
    )
    while batch := asked.fetchmany(_BATCH):
        for row, caption in batch:
            found = wanted.get(normal(caption or ""))
            if found is not None:
                rows.append(row)
                of.append(found)
    base.register("evaluation_found", pa.table({"row": pa.array(rows, pa.int64()), "of": pa.array(of, pa.string())}))
    base.execute(f"INSERT INTO contaminated SELECT row, '{CAPTION}', of FROM evaluation_found")
    base.unregister("evaluation_found")


def read_captions(file: Path) -> dict[str, str]:
    """{the normal form: the first caption of that form, as it is written} of a .txt (a line each), .csv or .parquet.

    Raises:
        UsageError: when it cannot be read, has no column of captions, or none but empty ones.
    """
    readers = {".txt": _lines, ".csv": _csv, ".parquet": _parquet}
    if file.suffix.lower() not in readers:
        raise UsageError(f"{file} is not of a known kind: name a .txt, .csv or .parquet of captions")
    found: dict[str, str] = {}
    try:
        for caption in readers[file.suffix.lower()](file):
            found.setdefault(normal(caption), caption.strip())
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{file} cannot be read ({reason}): mend it or fetch it again") from error
    found.pop("", None)
    if not found:
        raise UsageError(f"{file} has no captions: give one with words in it")
    return found


def normal(caption: str) -> str:
    """NFKC and case folded, what is neither letter, mark, digit nor symbol made one space; empty for no words."""
    if not caption.isascii():
        caption = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    return " ".join(caption.casefold().translate(_SPACES).split())


class _Spaces(dict[int, str]):
    """Code point -> a space for punctuation, separators and controls, nothing for invisible marks of format."""

    def __missing__(self, point: int) -> str:
        kind = unicodedata.category(chr(point))
        self[point] = "" if kind == "Cf" else " " if kind[0] in "PZC" else chr(point)
        return self[point]


_SPACES: Final = _Spaces()


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as stream:
        yield from stream


def _csv(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream)
        column = _column(file, next(rows, []))
        for number, row in enumerate(rows, 2):
            if row and len(row) <= column:
                raise UsageError(f"{file}, row {number} has {len(row)} fields, the caption is number {column + 1}")
            if row:
                yield row[column]


def _parquet(file: Path) -> Iterator[str]:
    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        name = names[_column(file, names)]
        for batch in opened.iter_batches(columns=[name]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)


def _column(file: Path, names: list[str]) -> int:
    for name in COLUMNS["caption"]:
        found = [number for number, each in enumerate(names) if each.strip().lower() == name]
        if found:
            return found[0]
    raise UsageError(f"{file} has no column for captions (any case of {' or '.join(COLUMNS['caption'])}): rename it")


def _unlisted(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be listed ({error.strerror}): mend that") from error
