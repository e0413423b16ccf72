"""How the scores lie: a histogram of each, what moving its threshold would keep, and the languages of the captions."""

from collections.abc import Sequence
from typing import Final

import duckdb

from bigdiff.prep import chart, sweep
from bigdiff.prep.chart import Bars, Curve, Mark
from bigdiff.prep.page import Cell, Markup, bar, charts, heading, note, section, share, table
from bigdiff.prep.query import run
from bigdiff.prep.rules import Rule
from bigdiff.prep.select import Histogram, Selection
from bigdiff.prep.stored import LANGUAGES, OURS, scores_of
from bigdiff.prep.sweep import Sweep

BINS: Final = 40
_BELOW: Final = ("pwatermark", "punsafe")  # of the metadata: their rule keeps what lies below the threshold
_FINE: Final = 1_024  # bins in which the tails of a score are looked for
_TAIL: Final = 0.005  # of the samples: where a histogram may end on either side
_FEW: Final = 64  # of those bins
_LOOKS: Final = 8
_LONG: Final = 0.7  # of a score's range; a histogram ends before the tails where it gets shorter than this
_LANGUAGES: Final = 15  # that are listed
_NAME_SHOWN: Final = 30  # characters


def of_metadata(selection: Selection | None) -> Markup:
    """The section on the metadata's scores, of all rows; nothing where there is no metadata."""
    if selection is None or not selection.histograms:
        return Markup()
    figures: list[list[str]] = [
        [chart.histogram(_bars(drawn)), *(_curve(each) for each in selection.sweeps if each.score == drawn.score)]
        for drawn in selection.histograms
    ]
    said = (
        "All rows, before any rule; the dashed line is the threshold, pale bars lie on its wrong side. The curves show "
        "the share of all rows that would be kept if that threshold lay elsewhere and all other rules stayed, before "
        "a URL's second rows are left out."
    )
    return section("Scores of the metadata", [note(said), *_grouped(figures)])


def of_samples(
    base: duckdb.DuckDBPyConnection, columns: tuple[str, ...], rules: Sequence[Rule], with_metadata: bool
) -> Markup:
    """The section on our own scores, of all stored samples, kept or not; `with_metadata`: and on the metadata's."""
    ((total,),) = run(base, "SELECT count(*) FROM facts", "counting")
    names = [name for name in scores_of(columns) if name not in LANGUAGES and (with_metadata or name in OURS)]
    figures = [drawn for name in names if (drawn := _drawn(base, name, rules, total))]
    parts: list[str] = []
    if figures:
        said = (
            f"All {total:,} stored samples, whether they stay or not. The curves show the share that would be kept if "
            "that threshold lay elsewhere and the other rules on scores stayed, before evaluation pictures and "
            "duplicates are left out."
        )
        parts += [note(said), *_grouped(figures)]
    for name in LANGUAGES:
        if name in columns:
            parts += _languages(base, name, total)
    return section("Scores of the stored samples", parts)


def _grouped(figures: Sequence[Sequence[str]]) -> list[Markup]:
    """A row for each score with its curves, then the scores without a threshold beside each other."""
    return [
        *(charts(each) for each in figures if len(each) > 1),
        charts([each[0] for each in figures if len(each) == 1]),
    ]


def _bars(drawn: Histogram) -> Bars:
    marks = () if drawn.threshold is None else (Mark(value=drawn.threshold, below=drawn.score in _BELOW),)
    absent = f", {drawn.absent:,} without" if drawn.absent else ""
    said = f"{sum(drawn.counts):,} rows{absent}"
    return Bars(name=drawn.score, low=drawn.low, high=drawn.high, counts=drawn.counts, said=said, marks=marks)


def _curve(moved: Sweep) -> Markup:
    points = tuple((at, kept / (moved.rows or 1)) for at, kept in zip(moved.at, moved.kept, strict=True))
    chosen = (moved.threshold, moved.chosen / (moved.rows or 1))
    said = f"keeps {moved.chosen:,} of {moved.rows:,}; {max(moved.kept):,} at the loosest shown"
    return chart.curve(Curve(name=moved.rule, points=points, chosen=chosen), said)


def _drawn(base: duckdb.DuckDBPyConnection, name: str, rules: Sequence[Rule], total: int) -> list[str]:
    """The histogram of a column, and a curve for each rule that compares it with a number."""
    mine = [number for number, rule in enumerate(rules) if rule.bound is not None and rule.bound.column == name]
    bounds = [rule.bound for rule in rules if rule.bound is not None and rule.bound.column == name]
    ((low, high, known),) = run(
        base,
        f"SELECT min({name}::DOUBLE), max({name}::DOUBLE), count(*) FROM facts WHERE isfinite({name}::DOUBLE)",
        f"{name} by value",
    )
    if not known:
        return []
    begin, end = _without_tails(base, name, (low, high), known)
    begin, end = min([begin, *(each.value for each in bounds)]), max([end, *(each.value for each in bounds)])
    counts = _counts(base, name, begin, end, BINS)
    outside = known - sum(counts)
    said = f"{known:,} samples" + (f", {total - known:,} without" if known < total else "")
    drawn = Bars(
        name=name,
        low=begin,
        high=end,
        counts=tuple(counts),
        said=said + (f", {outside:,} beyond the ends ({low:.3g} to {high:.3g})" if outside else ""),
        marks=tuple(Mark(value=each.value, below=each.comparison.startswith("<")) for each in bounds),
    )
    at = [begin + (end - begin) * place / BINS for place in range(BINS + 1)]
    figures: list[str] = [chart.histogram(drawn)]
    for number in mine:
        (answer,) = run(base, sweep.kept_sql(rules, number, at), f"{name} by threshold")
        figures.append(_curve(sweep.of_counts(rules[number], at, answer, total)))
    return figures


def _without_tails(
    base: duckdb.DuckDBPyConnection, name: str, span: tuple[float, float], known: int
) -> tuple[float, float]:
    """The range without the few far values on either side that would leave the rest one bar."""
    low, high = span
    for _ in range(_LOOKS):
        if low == high:
            break
        counts = _counts(base, name, low, high, _FINE)
        missing = (known - sum(counts)) / 2
        first, last = _reached(counts, known, missing), _FINE - _reached(counts[::-1], known, missing)
        low, high = low + (high - low) * first / _FINE, low + (high - low) * last / _FINE
        if last - first > _FEW:  # else all but the tails still lies in a bin or two
            break
    return span if high - low > _LONG * (span[1] - span[0]) else (low, high)


def _reached(counts: Sequence[int], known: int, missing: float) -> int:
    """The bin, from its beginning, at which more than a tail of the values has been passed."""
    passed = missing
    for place, count in enumerate(counts):
        passed += count
        if passed > _TAIL * known:
            return place
    return 0


def _counts(base: duckdb.DuckDBPyConnection, name: str, low: float, high: float, bins: int) -> list[int]:
    """Values in each of the bins from `low` to `high`; the last has its end, too."""
    width = (high - low) / bins or 1.0
    score = f"{name}::DOUBLE"
    found = dict(
        run(
            base,
            f"SELECT least(CAST(floor(({score} - {low!r}) / {width!r}) AS INTEGER), {bins - 1}) AS bin, count(*) "
            f"FROM facts WHERE {score} BETWEEN {low!r}::DOUBLE AND {high!r}::DOUBLE GROUP BY bin",
            f"{name} by value",
        )
    )
    return [found.get(place, 0) for place in range(bins)]


def _languages(base: duckdb.DuckDBPyConnection, name: str, total: int) -> list[str]:
    found = run(
        base,
        f"SELECT coalesce({name}, '') AS spoken, count(*) AS stored, count(*) FILTER (step IS NULL) FROM facts "
        "GROUP BY spoken ORDER BY stored DESC, spoken",
        f"{name} by value",
    )
    rows: list[list[Cell]] = [
        [(language or "(none)")[:_NAME_SHOWN], stored, share(stored, total), kept, bar(stored, total)]
        for language, stored, kept in found[:_LANGUAGES]
    ]
    rest = found[_LANGUAGES:]
    if rest:
        stored, kept = (sum(each[place] for each in rest) for place in (1, 2))
        rows.append([f"{len(rest):,} others", stored, share(stored, total), kept, bar(stored, total)])
    return [heading(name), table(("language", "stored", "share", "in the set", ""), rows, named=True)]
