"""The metadata's files as one table with our own column names, whatever a release calls them and however it types them.

A score is only taken for one of ours where the release's column is by the same detector: COYO's watermark and NSFW
scores and the ViT-L/14 similarities of COYO and DataComp are other quantities than LAION's columns, so they are read
only where `select.columns` names them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Columns
from bigdiff.prep.query import named, quoted
from bigdiff.prep.rules import Rule

# Our name -> the names in the releases of LAION, Re-LAION, COYO and DataComp and in img2dataset's output, compared
# without case. LAION's `similarity` is of ViT-B/32 (multilingual CLIP outside English); `aesthetic_score_laion_v2` is
# by the predictor behind AESTHETIC_SCORE. `aesthetic` is not always that: LAION's first aesthetic sets have the score
# of the older, linear predictor under this name, on another scale.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "url": ("url",),
    "caption": ("text", "caption", "top_caption"),
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score"),
    "hash": ("hash",),
    "pwatermark": ("pwatermark",),
    "punsafe": ("punsafe",),
    "aesthetic": ("aesthetic_score", "aesthetic", "aesthetic_score_laion_v2"),
    "language": ("language",),
}
TYPES: Final[dict[str, str]] = {
    "url": "VARCHAR",
    "caption": "VARCHAR",
    "width": "BIGINT",
    "height": "BIGINT",
    "similarity": "DOUBLE",
    "hash": "BIGINT",
    "pwatermark": "DOUBLE",
    "punsafe": "DOUBLE",
    "aesthetic": "DOUBLE",
    "language": "VARCHAR",
}
ALWAYS: Final = ("url", "caption")  # columns that no set goes without
# Files that were resized by img2dataset have both: the picture's own size is the one that is meant.
_FIRST_WINS: Final = ("width", "height")
_LAION: Final = {"caption": "text", "aesthetic": "aesthetic_score"}  # where LAION's name is not ours
_ABSENT: Final = '"NULL"'  # duckdb's type of a column in which every value is null
_TEXT: Final = ("VARCHAR", "BLOB")
_SIGNED: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_INTEGERS: Final = (*_SIGNED, *(f"U{name}" for name in _SIGNED))
_FLOATS: Final = ("FLOAT", "DOUBLE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of the input."""

    name: str  # theirs
    type: str  # duckdb's name of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Files with the same columns."""

    files: tuple[Path, ...]
    columns: dict[str, Column]  # by our name


def sources(
    base: duckdb.DuckDBPyConnection, files: tuple[Path, ...], active: tuple[Rule, ...], named: Columns
) -> tuple[Source, ...]:
    """The files by their columns; each has what the rules read.

    Raises:
        UsageError: for a file that is not parquet, or a column that is missing, ambiguous or of an unusable type.
    """
    grouped: dict[tuple[tuple[str, str, str], ...], list[Path]] = {}
    for file in files:
        found = _columns(base, file, named)
        for rule in active:
            for column in (*ALWAYS, *rule.columns):
                if column not in found:
                    raise UsageError(_missing(file, column, rule))
        grouped.setdefault(tuple((ours, each.name, each.type) for ours, each in found.items()), []).append(file)
    return tuple(
        Source(files=tuple(paths), columns={ours: Column(name=name, type=kind) for ours, name, kind in found})
        for found, paths in grouped.items()
    )


def exchanged(found: tuple[Source, ...]) -> tuple[Source, ...]:
    """The same with each other's column for width and height."""
    mended = []
    for source in found:
        other = {"width": source.columns["height"], "height": source.columns["width"]}
        mended.append(Source(files=source.files, columns={**source.columns, **other}))
    return tuple(mended)


def present(found: tuple[Source, ...]) -> tuple[str, ...]:
    """Our names of the columns that at least one file has."""
    return tuple(name for name in COLUMNS if any(name in source.columns for source in found))


def notes(found: tuple[Source, ...], named: Columns) -> tuple[str, ...]:
    """A sentence for each column that is not simply LAION's, or that some files lack."""
    said = []
    files = sum(len(source.files) for source in found)
    for ours in present(found):
        theirs = sorted({source.columns[ours].name for source in found if ours in source.columns})
        lacking = sum(len(source.files) for source in found if ours not in source.columns)
        asked = f" (select.columns.{ours})" if getattr(named, ours) is not None else ""
        without = f"; {lacking} of {files} files have none" if lacking else ""
        if lacking or {name.lower() for name in theirs} != {_LAION.get(ours, ours)}:
            said.append(f"{ours} is read from {' and '.join(theirs)}{asked}{without}")
    return tuple(said)


def view(found: tuple[Source, ...], columns: tuple[str, ...]) -> str:
    """A query for `columns` over all files."""
    parts = []
    for source in found:
        listed = ", ".join(quoted(file) for file in source.files)
        picked = ", ".join(_cast(name, source.columns.get(name)) for name in columns)
        parts.append(f"SELECT {picked} FROM read_parquet([{listed}])")
    return " UNION ALL ".join(parts)


def _columns(base: duckdb.DuckDBPyConnection, file: Path, named: Columns) -> dict[str, Column]:
    try:
        described = base.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(file)]).fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{file} is not a readable parquet file: {first_line(error)}; fetch it again") from error
    theirs = {str(name).lower(): Column(name=str(name), type=str(kind)) for name, kind, *_ in described}
    found: dict[str, Column] = {}
    for ours, variants in COLUMNS.items():
        asked = getattr(named, ours)
        if asked is not None and asked.lower() not in theirs:
            raise UsageError(f"{file} has no column {asked!r}: correct select.columns.{ours}, or set it to null")
        wanted = variants if asked is None else (asked.lower(),)
        listed = [theirs[name] for name in wanted if name in theirs]
        if len(listed) > 1 and ours not in _FIRST_WINS:
            both = " and ".join(each.name for each in listed)
            mend = f"name the one that is meant as select.columns.{ours}"
            raise UsageError(f"{file} has columns {both}, both read as {ours}: {mend}")
        if listed:
            found[ours] = _usable(file, ours, listed[0])
    return found


def _usable(file: Path, ours: str, column: Column) -> Column:
    """`column` when its type can hold `ours`.

    Numbers may be written as text: what cannot be read as a number is absent.
    """
    if TYPES[ours] == "VARCHAR":
        wanted, fits = "text", column.type in _TEXT
    else:
        wanted = "numbers"
        fits = column.type in (*_INTEGERS, *_FLOATS, "VARCHAR") or column.type.startswith("DECIMAL")
    if not fits and column.type != _ABSENT:
        raise UsageError(
            f"{file}: column {column.name} is of type {column.type}, {ours} needs {wanted}: convert it, or name "
            f"another column as select.columns.{ours}"
        )
    return column


def _missing(file: Path, column: str, rule: Rule) -> str:
    names = " or ".join(COLUMNS[column])
    sentence = f"{file} has no column for {column} (any case of {names})"
    named = f"select.columns.{column}"
    if column in ALWAYS:
        return f"{sentence}: name the column that holds it as {named}"
    off = "[]" if rule.setting.endswith("languages") else "null"
    return (
        f"{sentence}, which the rule '{rule.name}' reads: add it, name the column that holds it as {named}, or turn "
        f"the rule off with {rule.setting}={off}"
    )


def _cast(ours: str, column: Column | None) -> str:
    if column is None:
        return f"CAST(NULL AS {TYPES[ours]}) AS {ours}"
    theirs = named(column.name)
    if column.type == "BLOB":
        return f"TRY(decode({theirs})) AS {ours}"  # bytes that are no UTF-8 count as absent
    if TYPES[ours] == "DOUBLE":
        # Not-a-number counts as absent: duckdb orders it above every number, so it would pass a lower bound.
        if column.type in _FLOATS:
            return f"CASE WHEN isfinite({theirs}) THEN CAST({theirs} AS DOUBLE) END AS {ours}"
        return f"CASE WHEN isfinite(TRY_CAST({theirs} AS DOUBLE)) THEN TRY_CAST({theirs} AS DOUBLE) END AS {ours}"
    return f"TRY_CAST({theirs} AS {TYPES[ours]}) AS {ours}"


def first_line(error: Exception) -> str:
    """What an error says, without duckdb's excerpt of the query."""
    return str(error).strip().splitlines()[0]
