"""Which rows of the metadata are wanted, and the order that everything later keeps.

The global shuffle happens here: the wanted rows are ordered by md5(seed, URL), and no later step changes that order.
Nothing is held in memory but duckdb's own buffers, which spill to disk. The metadata is read once where a rule on
numbers refuses rows: a single statement counts all of them and writes the wanted ones.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Prep, Select
from bigdiff.prep import metadata, sizes, sweep
from bigdiff.prep.metadata import first_line
from bigdiff.prep.query import database, quoted, run
from bigdiff.prep.rules import DUPLICATE, SCORES, Rule, failed_sql, rules, threshold
from bigdiff.prep.sweep import Sweep
from bigdiff.runtime.files import replacing

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
    notes: tuple[str, ...] = ()  # how the input was read where that is not plain: a sentence each
    sweeps: tuple[Sweep, ...] = ()  # of the scores that have a threshold; rows are counted before URLs are made unique


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """What is read, by which rules."""

    columns: tuple[str, ...]
    active: tuple[Rule, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counted:
    """What one pass over all rows finds."""

    rows: int
    kept: int
    counts: tuple[Count, ...]  # but for duplicates
    histograms: tuple[Histogram, ...]  # of the scores that have a value at all
    sweeps: tuple[Sweep, ...]


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
        RunError: when memory or disk do not suffice.
    """
    active = rules(prep.select, prep.download.allow_private_addresses)
    temporary = None if output is None else output.parent / "duckdb"
    with database(temporary, prep.select.memory_gb) as base, ExitStack() as stack:
        try:
            found = _read(base, files, active, prep.select)
            target = None if output is None else stack.enter_context(replacing(output))
            counted = _count(base, found, prep, target)
        except duckdb.Error as error:
            raise UsageError(f"the metadata in {files[0].parent} cannot be read: {_mend(error)}") from error
        unique = Count(rule=DUPLICATE, left=counted.kept, only=counted.counts[-1].left - counted.kept)
        outcome = Selection(
            rows=counted.rows,
            kept=counted.kept,
            counts=(*counted.counts, unique),
            histograms=counted.histograms,
            columns=found.columns,
            notes=found.notes,
            sweeps=counted.sweeps,
        )
        if not outcome.kept:  # said in here, so that `output` stays as it was
            raise UsageError(_nothing_left(outcome, active, files))
    return outcome


def _read(base: duckdb.DuckDBPyConnection, files: tuple[Path, ...], active: tuple[Rule, ...], chosen: Select) -> _Input:
    """The files' columns as a view `metadata`, width and height the right way round."""
    found = metadata.sources(base, files, active, chosen.columns)
    columns = metadata.present(found)
    notes = metadata.notes(found, chosen.columns)
    if sizes.is_needed(chosen) and {"width", "height"} <= set(columns):
        seen = f"({metadata.view(found, ('url', 'width', 'height'))})"
        straight, swapped = run(base, sizes.query(seen), "comparing sizes")[0]
        votes = sizes.Votes(straight=straight, swapped=swapped)
        exchanged, notes = sizes.decide(votes), (*notes, sizes.note(votes))
    else:
        exchanged = chosen.swapped_sizes == "always"
    if exchanged:
        found = metadata.exchanged(found)
    base.execute(f"CREATE VIEW metadata AS {metadata.view(found, columns)}")
    return _Input(columns=columns, active=active, notes=notes)


def _count(base: duckdb.DuckDBPyConnection, found: _Input, prep: Prep, target: Path | None) -> _Counted:
    """The rows by the set of rules that they fail, and in each set by the steps of the scores; `target` is written."""
    scores = [name for name in SCORES if name in found.columns]
    groups, kept = _groups(base, found, scores, prep.pack.seed, target)
    rows = {int(group[0]): int(group[1]) for group in groups}
    counts = []
    for bit, rule in enumerate(found.active):
        so_far = (2 << bit) - 1
        left = sum(number for failed, number in rows.items() if not failed & so_far)
        counts.append(Count(rule=rule.name, left=left, only=rows.get(1 << bit, 0)))
    by_step: dict[str, dict[int, dict[int, int]]] = {
        score: {int(group[0]): group[place] or {} for group in groups} for place, score in enumerate(scores, start=2)
    }
    of_scores = {score: sum(map(Counter, by_step[score].values()), Counter()) for score in scores}
    drawn = (_histogram(score, steps, rows, prep.select) for score, steps in of_scores.items())
    return _Counted(
        rows=sum(rows.values()),
        kept=kept,
        counts=tuple(counts),
        histograms=tuple(each for each in drawn if each is not None),
        sweeps=tuple(_sweeps(found.active, by_step, rows)),
    )


def _sweeps(
    active: tuple[Rule, ...], by_step: dict[str, dict[int, dict[int, int]]], rows: dict[int, int]
) -> Iterator[Sweep]:
    """Of each rule that can be moved: over the rows that it alone refuses, and those that none does."""
    for bit, rule in enumerate(active):
        if not sweep.is_swept(rule):
            continue
        assert rule.bound is not None
        of_score = by_step[rule.bound.column]
        steps = Counter(of_score.get(0, {})) + Counter(of_score.get(1 << bit, {}))
        moved = sweep.of_steps(rule, steps, rows.get(0, 0), sum(rows.values()))
        if moved is not None:
            yield moved


def _histogram(score: str, steps: Counter[int], rows: dict[int, int], chosen: Select) -> Histogram | None:
    if not steps:
        return None
    low, high, counts = sweep.bars(score, steps)
    absent = sum(rows.values()) - sum(counts)
    return Histogram(score=score, low=low, high=high, counts=counts, absent=absent, threshold=threshold(chosen, score))


def _groups(
    base: duckdb.DuckDBPyConnection, found: _Input, scores: Sequence[str], seed: int, target: Path | None
) -> tuple[list[tuple[Any, ...]], int]:
    """Of each set of failed rules (a bit each) its rows, and those by steps of `scores`; then how many rows are kept.

    With `target`, the kept rows are written there meanwhile: in one statement files are read and text is decoded once,
    because duckdb hands each chunk of `tested` on to everything that reads it, and stores none. A sort that reads
    `tested` itself would have all of it stored first, which takes as much disk as the metadata without its compression.
    DISTINCT before the sort takes rows as they come, and gives back its own disk while the sort fills. Where no rule is
    on numbers nearly all rows are kept, and DISTINCT costs more than reading them again: 15 % of the processor's time.
    """
    numbers, text = (failed_sql(found.active, text) for text in (False, True))
    # Of a row that fails two rules on numbers the text is not looked at: it can change no count.
    failed = f"numbers + CASE WHEN bit_count(numbers) > 1 THEN 0 ELSE {text} END"
    tested = f"SELECT {failed} AS failed, * FROM (SELECT {numbers} AS numbers, * FROM metadata)"
    steps = "".join(f", {sweep.steps_sql(score)}" for score in scores)
    wanted = f"SELECT {{}} {', '.join(found.columns)} FROM {{}} WHERE failed = 0"
    if target is not None and all(rule.reads_text for rule in found.active):
        groups = run(base, f"SELECT failed, count(*){steps} FROM ({tested}) GROUP BY failed", "counting")
        copy = _copy_sql(wanted.format("ALL", f"({tested})"), found.columns, seed, target)
        return groups, int(run(base, copy, "writing the selection")[0][0])
    tables = f"tested AS MATERIALIZED ({tested})"
    kept = "SELECT count(DISTINCT md5_number(url)) FROM tested WHERE failed = 0"  # 128 bits: no two URLs share one
    if target is not None:
        tables += f", written AS ({_copy_sql(wanted.format('DISTINCT', 'tested'), found.columns, seed, target)})"
        kept = "SELECT count FROM written"
    query = f"WITH {tables} SELECT failed, count(*){steps}, ({kept}) FROM tested GROUP BY failed"
    groups = run(base, query, "selecting")
    return groups, int(groups[0][-1]) if groups else 0


def _copy_sql(wanted: str, columns: tuple[str, ...], seed: int, target: Path) -> str:
    """Write the rows of `wanted`, one per URL, numbered in shuffled order; gives their number.

    One sort does both: it brings rows with one URL together, best first. What follows it streams.
    """
    names = ", ".join(columns)
    # Every column takes part in the choice among duplicates, so that the input's order does not.
    order = ", ".join(f"{name} NULLS LAST" for name in columns)
    keyed = f"SELECT unhex(md5('{seed}:' || url)) AS key, {names} FROM ({wanted})"
    marked = (
        f"SELECT *, lag(url) OVER () IS DISTINCT FROM url AS first FROM (SELECT * FROM ({keyed}) ORDER BY key, {order})"
    )
    unique = f"SELECT row_number() OVER () - 1 AS row, {names} FROM ({marked}) WHERE first"
    return f"COPY ({unique}) TO {quoted(target)} (FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})"


def _nothing_left(outcome: Selection, active: tuple[Rule, ...], files: tuple[Path, ...]) -> str:
    if not outcome.rows:
        return f"{files[0].parent} has no rows: give parquet files with content"
    last = next(count for count in outcome.counts if count.left == 0)
    setting = next((rule.setting for rule in active if rule.name == last.rule), "")
    mend = f"loosen {setting}" if setting else "correct the input"
    return f"no row of {outcome.rows} is left after the rule '{last.rule}': {mend}"


def _mend(error: duckdb.Error) -> str:
    said = first_line(error)
    if "not valid UTF8" in said:  # duckdb stops at the first; of a binary column we can leave such rows out
        return f"{said} Write that column as binary: rows that are no UTF-8 are then counted and left out"
    return said
