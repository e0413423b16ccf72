"""Which rows of the metadata are wanted, and the order that everything later keeps.

The global shuffle happens here: the wanted rows are ordered by md5(seed, URL), and no later step changes that order.
Nothing is held in memory but duckdb's own buffers, which spill to disk.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Prep, Select
from bigdiff.prep.rules import ALWAYS, COLUMNS, DUPLICATE, SCORES, TYPES, Rule, rules, threshold
from bigdiff.runtime.files import replacing

BINS: Final = 40
_ROW_GROUP: Final = 10_000  # rows; a reader that wants a range of rows skips the other groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What one rule did."""

    rule: str
    left: int  # rows that pass it and all rules before it
    only: int  # rows that every other rule would keep


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How a score is distributed over all rows, before any rule."""

    score: str
    low: float
    high: float
    counts: tuple[int, ...]
    absent: int  # null or not a finite number
    threshold: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The outcome: how many rows there were, what each rule did, how the scores lie."""

    rows: int
    kept: int
    counts: tuple[Count, ...]
    histograms: tuple[Histogram, ...]
    columns: tuple[str, ...]  # ours, of those found in the input


def inputs(path: Path) -> tuple[Path, ...]:
    """The parquet files of `path`: itself, or those in the folder (not below it), sorted by name.

    Raises:
        UsageError: when there are none.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise UsageError(f"--input {path} does not exist: name a parquet file or a folder of them")
    files = tuple(sorted(path.glob("*.parquet")))
    if not files:
        raise UsageError(f"--input {path} has no *.parquet file: name a parquet file or a folder of them")
    return files


def select(files: tuple[Path, ...], prep: Prep, output: Path | None) -> Selection:
    """Count what each rule does and, with `output`, write the wanted rows there.

    `output` is a parquet file with `row` (0, 1, ... in shuffled order), then the columns found in the input under our
    names. Of rows with the same URL the first by caption is kept. The same input and settings give the same rows.

    Raises:
        UsageError: for an unreadable file, a missing column, or a selection that keeps nothing.
    """
    active = rules(prep.select, prep.download.allow_private_addresses)
    with duckdb.connect() as base:
        if output is not None:
            _set(base, "temp_directory", str(output.parent / "duckdb"))
        groups = _groups(base, files, active)
        columns = tuple(name for name in COLUMNS if any(name in found for found in groups.values()))
        try:
            base.execute(f"CREATE VIEW metadata AS {_union(groups, columns)}")
            counted = _count(base, active)
            histograms = tuple(_histograms(base, columns, prep.select))
            if output is not None and counted[-1].left:
                _write(base, active, columns, prep.pack.seed, output)
            rows = _one(base, "SELECT count(*) FROM metadata")[0]
        except duckdb.Error as error:
            raise UsageError(f"the metadata in {files[0].parent} cannot be read: {_first_line(error)}") from error
    outcome = Selection(rows=rows, kept=counted[-1].left, counts=counted, histograms=histograms, columns=columns)
    if not outcome.kept:
        raise UsageError(_nothing_left(outcome, active, files))
    return outcome


def _groups(
    base: duckdb.DuckDBPyConnection, files: tuple[Path, ...], active: tuple[Rule, ...]
) -> dict[tuple[str, ...], dict[str, str]]:
    """{paths of files with the same columns: {our name: their name}}."""
    grouped: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file in files:
        found = _columns(base, file)
        for rule in active:
            for column in (*ALWAYS, *rule.columns):
                if column not in found:
                    raise UsageError(_missing(file, column, rule))
        grouped.setdefault(tuple(found.items()), []).append(str(file))
    return {tuple(paths): dict(found) for found, paths in grouped.items()}


def _columns(base: duckdb.DuckDBPyConnection, file: Path) -> dict[str, str]:
    try:
        described = base.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(file)]).fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{file} is not a readable parquet file: {_first_line(error)}; fetch it again") from error
    theirs = {str(row[0]).lower(): str(row[0]) for row in described}
    found: dict[str, str] = {}
    for ours, variants in COLUMNS.items():
        present = [theirs[name] for name in variants if name in theirs]
        if len(present) > 1:
            raise UsageError(f"{file} has columns {' and '.join(present)}, both read as {ours}: drop one of them")
        if present:
            found[ours] = present[0]
    return found


def _missing(file: Path, column: str, rule: Rule) -> str:
    names = " or ".join(COLUMNS[column])
    sentence = f"{file} has no column for {column} (any case of {names})"
    if column in ALWAYS:
        return f"{sentence}: rename the column that holds it"
    off = "[]" if rule.setting.endswith("languages") else "null"
    return f"{sentence}, which the rule '{rule.name}' reads: add it, or turn the rule off with {rule.setting}={off}"


def _union(groups: dict[tuple[str, ...], dict[str, str]], columns: tuple[str, ...]) -> str:
    parts = []
    for paths, found in groups.items():
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        picked = ", ".join(_cast(name, found.get(name)) for name in columns)
        parts.append(f"SELECT {picked} FROM read_parquet([{listed}])")
    return " UNION ALL ".join(parts)


def _cast(ours: str, theirs: str | None) -> str:
    if theirs is None:
        return f"CAST(NULL AS {TYPES[ours]}) AS {ours}"
    quoted = '"' + theirs.replace('"', '""') + '"'
    if TYPES[ours] == "DOUBLE":
        # Not-a-number counts as absent: duckdb orders it above every number, so it would pass a lower bound.
        return f"CASE WHEN isfinite(TRY_CAST({quoted} AS DOUBLE)) THEN TRY_CAST({quoted} AS DOUBLE) END AS {ours}"
    return f"TRY_CAST({quoted} AS {TYPES[ours]}) AS {ours}"


def _count(base: duckdb.DuckDBPyConnection, active: tuple[Rule, ...]) -> tuple[Count, ...]:
    """Each rule's counts in one pass, then those of the duplicates among the rows that pass all rules."""
    flags = ", ".join(f"{rule.sql} AS p{index}" for index, rule in enumerate(active))
    passes = [f"p{index}" for index in range(len(active))]
    asked = [f"count(*) FILTER ({' AND '.join(passes[: index + 1])})" for index in range(len(active))]
    failed = " + ".join(f"CAST(NOT {each} AS INTEGER)" for each in passes)
    asked += [f"count(*) FILTER ((NOT {each}) AND {failed} = 1)" for each in passes]
    row = _one(base, f"SELECT {', '.join(asked)} FROM (SELECT {flags} FROM metadata)")
    counts = [
        Count(rule=rule.name, left=row[index], only=row[len(active) + index]) for index, rule in enumerate(active)
    ]
    distinct = _one(base, f"SELECT count(DISTINCT url) FROM metadata WHERE {_all(active)}")[0]
    return (*counts, Count(rule=DUPLICATE, left=distinct, only=counts[-1].left - distinct))


def _histograms(base: duckdb.DuckDBPyConnection, columns: tuple[str, ...], select: Select) -> list[Histogram]:
    found = []
    for score in (name for name in SCORES if name in columns):
        low, high, absent = _one(base, f"SELECT min({score}), max({score}), count(*) - count({score}) FROM metadata")
        if low is None:
            continue
        width = (high - low) / BINS or 1.0
        bins = dict(
            base.execute(
                f"SELECT least(CAST(floor(({score} - ?) / ?) AS INTEGER), {BINS - 1}) AS bin, count(*) "
                f"FROM metadata WHERE {score} IS NOT NULL GROUP BY bin",
                [low, width],
            ).fetchall()
        )
        counts = tuple(bins.get(index, 0) for index in range(BINS))
        drawn = threshold(select, score)
        found.append(Histogram(score=score, low=low, high=high, counts=counts, absent=absent, threshold=drawn))
    return found


def _write(
    base: duckdb.DuckDBPyConnection, active: tuple[Rule, ...], columns: tuple[str, ...], seed: int, output: Path
) -> None:
    """One row per URL, numbered in shuffled order."""
    kept = f"SELECT * FROM metadata WHERE {_all(active)}"
    # Every column takes part in the choice among duplicates, so that the input's order does not.
    order = ", ".join(f"{name} NULLS LAST" for name in columns)
    first = f"SELECT * FROM ({kept}) QUALIFY row_number() OVER (PARTITION BY url ORDER BY {order}) = 1"
    shuffled = f"SELECT row_number() OVER (ORDER BY md5('{seed}:' || url)) - 1 AS row, * FROM ({first}) ORDER BY row"
    with replacing(output) as temporary:
        path = str(temporary).replace("'", "''")
        base.execute(f"COPY ({shuffled}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})")


def _nothing_left(outcome: Selection, active: tuple[Rule, ...], files: tuple[Path, ...]) -> str:
    if not outcome.rows:
        return f"{files[0].parent} has no rows: give parquet files with content"
    last = next(count for count in outcome.counts if count.left == 0)
    setting = next((rule.setting for rule in active if rule.name == last.rule), "")
    mend = f"loosen {setting}" if setting else "correct the input"
    return f"no row of {outcome.rows} is left after the rule '{last.rule}': {mend}"


def _all(active: tuple[Rule, ...]) -> str:
    return " AND ".join(rule.sql for rule in active)


def _set(base: duckdb.DuckDBPyConnection, name: str, value: str) -> None:
    escaped = value.replace("'", "''")
    base.execute(f"SET {name} = '{escaped}'")


def _one(base: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = base.execute(query).fetchone()
    assert row is not None
    return row


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
