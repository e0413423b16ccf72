"""Why rows did not become samples of the set: each cause with its count, and some rows to look at."""

from dataclasses import dataclass
from typing import Final

import duckdb

from bigdiff.prep.layout import Layout
from bigdiff.prep.page import Cell, Markup, Url, bar, note, section, table
from bigdiff.prep.plan import STEPS
from bigdiff.prep.query import quoted, run

SHOWN: Final = 6  # rows of a cause that a gallery shows
LISTED: Final = 40  # causes of a table; a server may answer with any status
TAKEDOWN: Final = "takedown"
_TITLES: Final = {
    "Not downloaded": ("download",),
    "Downloaded and refused": ("verify",),
    "Stored and left out": STEPS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Why rows were lost at a step."""

    step: str  # "download", "verify", or one of the plan's
    cause: str
    rows: int
    example: str  # the first URL; empty for what was taken down, which is not to be named either
    shown: tuple[int, ...]  # the first rows that have a picture
    pictures: tuple[bytes, ...] = ()  # theirs, small JPEGs, where they are not stored


def causes(base: duckdb.DuckDBPyConnection, layout: Layout) -> list[Cause]:
    """All of them, in the order of the steps, by count."""
    return [*_rejected(base, layout), *_dropped(base, layout)]


def _rejected(base: duckdb.DuckDBPyConnection, layout: Layout) -> list[Cause]:
    if not layout.rejected.exists():  # nothing was fetched
        return []
    files = quoted(layout.rejected / "*.parquet")
    counted = run(
        base,
        f"SELECT step, cause, count(*) AS lost, arg_min(url, row) FROM read_parquet({files}) "
        "GROUP BY step, cause ORDER BY step, lost DESC, cause",
        "counting causes",
    )
    pictures = run(
        base,
        f"SELECT step, cause, row, picture FROM read_parquet({files}) WHERE picture IS NOT NULL AND row IN (SELECT "
        f"unnest(min(row, {SHOWN})) FROM read_parquet({files}) WHERE picture IS NOT NULL GROUP BY step, cause) "
        "ORDER BY row",
        "finding pictures",
    )
    found = []
    for step, cause, rows, url in counted:
        mine = [each for each in pictures if each[:2] == (step, cause)]
        found.append(
            Cause(
                step=step,
                cause=cause,
                rows=rows,
                example=url,
                shown=tuple(each[2] for each in mine),
                pictures=tuple(each[3] for each in mine),
            )
        )
    return found


def _dropped(base: duckdb.DuckDBPyConnection, layout: Layout) -> list[Cause]:
    """The samples that the plan left out, in the order of its steps."""
    found = run(
        base,
        f"SELECT step, cause, count(*) AS lost, arg_min(url, row), min(row, {SHOWN}) "
        f"FROM read_parquet({quoted(layout.dropped)}) GROUP BY step, cause",
        "counting causes",
    )
    found.sort(key=lambda each: (STEPS.index(each[0]), -each[2], each[1]))
    return [
        Cause(
            step=step,
            cause=cause,
            rows=lost,
            example="" if step == TAKEDOWN else url,
            shown=() if step == TAKEDOWN else tuple(rows),
        )
        for step, cause, lost, url, rows in found
    ]


def lost(found: list[Cause], step: str) -> int:
    """Rows that a step lost."""
    return sum(cause.rows for cause in found if cause.step == step)


def written(found: list[Cause], title: str, more: tuple[str, ...] = ()) -> Markup:
    """The section of the steps that `title` stands for, with the further parts `more`."""
    mine = [cause for cause in found if cause.step in _TITLES[title]]
    total = sum(cause.rows for cause in mine)
    rows: list[list[Cell]] = [[each.cause, each.rows, bar(each.rows, total), Url(each.example)] for each in mine]
    rest = rows[LISTED:]
    parts = [table(("cause", "rows", "", "first of them"), rows[:LISTED]) or note("None.")]
    if rest:
        parts.append(note(f"And {len(rest):,} further causes with {sum(each.rows for each in mine[LISTED:]):,} rows."))
    return section(f"{title}: {total:,}", [*parts, *more])
