"""What a job has stored, as tables for its report: one narrow row a sample, and a sample's picture when it is shown."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args

import duckdb

from bigdiff.config.scoring import Kind
from bigdiff.prep.layout import Layout
from bigdiff.prep.query import quoted, run
from bigdiff.prep.scorers.scorer import column
from bigdiff.prep.verify import SCORE_TYPES

OURS: Final = tuple(column(kind) for kind in get_args(Kind))  # columns of our own scores
THEIRS: Final = tuple(name for name in SCORE_TYPES if name != "hash")  # of the metadata's
LANGUAGES: Final = ("language", "detected_language")  # scores that are names
_PLAIN: Final = ("width", "height", "original_width", "original_height", "phash")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A stored sample as a gallery shows it."""

    row: int
    caption: str
    content: bytes  # of the picture
    scores: dict[str, Any]  # by column


def gather(base: duckdb.DuckDBPyConnection, layout: Layout) -> tuple[str, ...]:
    """Make the table `facts` and return those of its columns that not every job has.

    `facts` has a row per stored sample: row, where its bytes lie (unit, start, length), the step of the plan that left
    it out (NULL: it is in the set), its scores, and what the job knows of its original and its hash.
    """
    units = sorted(path.stem for path in layout.samples.glob("*.parquet"))
    run(base, f"CREATE TYPE unit AS ENUM ({', '.join(map(quoted, units))})", "reading samples")
    read = f"read_parquet({quoted(layout.samples / '*.parquet')}, filename = true, union_by_name = true)"
    source = f"(SELECT * EXCLUDE (filename), parse_filename(filename, true)::unit AS unit FROM {read}) AS stored"
    if any(layout.scores.glob("*.parquet")):
        scored = f"read_parquet({quoted(layout.scores / '*.parquet')}, union_by_name = true)"
        source = f"{source} JOIN {scored} AS scored USING (row)"
    described = run(base, f"DESCRIBE SELECT * FROM {source}", "reading samples")
    present = {str(each[0]) for each in described}
    columns = tuple(name for name in (*_PLAIN, *THEIRS, *OURS) if name in present)
    listed = "".join(f", {name}" for name in columns)
    run(
        base,
        f'CREATE TABLE facts AS SELECT row, unit, "offset" AS start, length, '
        f"gone.step AS step{listed} FROM {source} LEFT JOIN "
        f"(SELECT row, step FROM read_parquet({quoted(layout.dropped)})) AS gone USING (row)",
        "reading samples",
    )
    return columns


def scores_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Those columns of `facts` that are scores."""
    return tuple(name for name in columns if name not in _PLAIN)


def samples(
    base: duckdb.DuckDBPyConnection, layout: Layout, rows: Iterable[int], columns: tuple[str, ...]
) -> dict[int, Sample]:
    """Some samples by their row, with their pictures; a row that is not stored is absent."""
    wanted = sorted(set(rows))
    if not wanted:
        return {}
    listed = ", ".join(map(str, wanted))
    scores = scores_of(columns)
    asked = ", ".join(("row", "unit", "start", "length", *scores))
    places = run(base, f"SELECT {asked} FROM facts WHERE row IN ({listed}) ORDER BY row", "finding pictures")
    files = ", ".join(quoted(layout.samples / f"{unit}.parquet") for unit in sorted({str(each[1]) for each in places}))
    captions = dict(
        run(base, f"SELECT row, caption FROM read_parquet([{files}]) WHERE row IN ({listed})", "finding captions")
    )
    found = {}
    for row, unit, at, length, *values in places:
        with (layout.pictures / unit).open("rb") as source:
            content = os.pread(source.fileno(), length, at)
        known = {name: value for name, value in zip(scores, values, strict=True) if value is not None}
        found[row] = Sample(row=row, caption=captions[row], content=content, scores=known)
    return found
