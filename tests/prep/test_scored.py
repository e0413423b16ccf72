import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.prep import scored
from bigdiff.prep.scored import BINS
from bigdiff.prep.scorers import thresholds
from bigdiff.prep.select import Histogram, Selection
from bigdiff.prep.stored import gather
from bigdiff.prep.sweep import Sweep

MOVED = Sweep(
    rule="aesthetic > 5", score="aesthetic", comparison=">", threshold=5.0, at=(0.0, 9.0), kept=(7, 1), chosen=3, rows=9
)
SELECTION = Selection(
    rows=9,
    kept=3,
    counts=(),
    histograms=(
        Histogram(score="aesthetic", low=0.0, high=9.0, counts=(2, 7), absent=4, threshold=5.0),
        Histogram(score="punsafe", low=0.0, high=1.0, counts=(8, 1), absent=0, threshold=0.5),
    ),
    columns=("url",),
    sweeps=(MOVED,),
)


def test_the_metadatas_scores_with_the_curve_of_each_threshold() -> None:
    page = scored.of_metadata(SELECTION)
    assert page.count("<rect") == 4
    assert page.count("<polyline") == 1
    assert "9 rows, 4 without" in page
    assert "keeps 3 of 9; 7 at the loosest shown" in page
    assert re.findall(r'class="(on|off)"', page) == ["off", "on", "on", "off"]
    assert scored.of_metadata(None) == ""
    assert scored.of_metadata(replace(SELECTION, histograms=())) == ""


def test_our_scores_with_thresholds_languages_and_what_is_in_the_set(judged: Any) -> None:
    rules = thresholds.rules(judged.choice.scoring)
    with judged.base() as base:
        columns = gather(base, judged.layout)
        page = scored.of_samples(base, columns, rules, with_metadata=False)
        taken_over = scored.of_samples(base, columns, rules, with_metadata=True)
    assert "histogram of aesthetic" not in page
    assert "histogram of aesthetic" in taken_over
    assert page.count("<polyline") == 3  # sharpness has two thresholds
    kept = {row for row, value in judged.sharpness.items() if 5 <= value < 20 and row not in (2, 23)}
    passing = len(kept) + 1  # before duplicates
    assert page.count(f"keeps {passing} of 24;") == 3
    german = sum(row % 3 == 0 for row in range(24))
    said = '<th scope="row">&lt;de&gt;</th><td class="n">{}</td><td class="n">33.3%</td><td class="n">{}</td>'
    assert said.format(german, sum(row % 3 == 0 for row in kept)) in page


def facts(base: duckdb.DuckDBPyConnection, values: Any) -> None:
    given = pa.table({"sharpness": pa.array(values, pa.float64())})
    base.register("given", given)
    base.execute("CREATE OR REPLACE TABLE facts AS SELECT *, NULL::VARCHAR AS step FROM given")


def heights(page: str) -> list[float]:
    return [float(each) for each in re.findall(r'<rect [^>]*height="([\d.]+)"', page)]


@pytest.mark.parametrize("far", [1e3, 1e9, 1e20])
def test_a_few_far_values_do_not_hide_the_rest(far: float) -> None:
    values = [*np.random.default_rng(0).normal(50, 10, 5_000), far, -far, None, math.nan, math.inf]
    with duckdb.connect() as base:
        facts(base, values)
        page = scored.of_samples(base, ("sharpness",), (), with_metadata=False)
    drawn = heights(page)
    assert len(drawn) == BINS
    assert sum(height > 10 for height in drawn) > BINS / 3, far
    assert "5,002 samples, 3 without" in page
    assert "beyond the ends" in page


def test_all_values_are_in_a_histogram_without_tails() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 4_000)
    with duckdb.connect() as base:
        facts(base, values)
        page = scored.of_samples(base, ("sharpness",), (), with_metadata=False)
        counts = scored._counts(base, "sharpness", float(values.min()), float(values.max()), BINS)
    assert "beyond" not in page
    assert counts == np.histogram(values, BINS)[0].tolist()


@pytest.mark.parametrize("values", [[], [None], [math.nan], [3.0], [3.0, 3.0, 4.0]])
def test_few_or_no_values(values: list[float | None]) -> None:
    rules = thresholds.rules(Scoring(scorers=[Scorer(kind="sharpness", at_least=2.0)]))
    with duckdb.connect() as base:
        facts(base, values)
        page = scored.of_samples(base, ("sharpness",), rules, with_metadata=False)
    known = [value for value in values if value is not None and math.isfinite(value)]
    assert ("<svg" in page) == bool(known)
    assert not known or f"keeps {len(known)} of {len(values)};" in page


def test_many_languages_end_in_a_row_of_others(tmp_path: Path) -> None:
    names = [f"l{number:02d}" for number in range(40) for _ in range(40 - number)] + [None]
    with duckdb.connect() as base:
        base.register("given", pa.table({"language": pa.array(names, pa.string())}))
        base.execute("CREATE TABLE facts AS SELECT *, NULL::VARCHAR AS step FROM given")
        page = scored.of_samples(base, ("language",), (), with_metadata=False)
    cells = re.findall(r'<th scope="row">([^<]*)</th><td class="n">([\d,]+)<', page)
    assert len(cells) == 16
    assert cells[0] == ("l00", "40")
    assert cells[-1][0] == "26 others"
    assert sum(int(count) for _, count in cells) == len(names)
