from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.prep import Download, Prep, Select
from bigdiff.prep import stored, sweep
from bigdiff.prep.rules import rules
from bigdiff.prep.scorers import thresholds
from bigdiff.prep.select import select

ROWS = 3_000
ASKED = Select(aesthetic_at_least=5.0, pwatermark_below=0.5, min_width=300)
PREP = Prep(select=ASKED, download=Download(allow_private_addresses=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    content = {
        "URL": [f"http://a.example/{number}" for number in range(ROWS)],
        "TEXT": ["a"] * ROWS,
        "WIDTH": random.integers(200, 600, ROWS),
        "AESTHETIC_SCORE": [None, float("nan"), 12.0, -1.0, *random.uniform(3, 8, ROWS - 4)],
        "pwatermark": random.uniform(0, 1, ROWS),
    }
    pq.write_table(pa.table(content), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_a_moved_threshold_keeps_what_a_selection_with_it_would(source: Path) -> None:
    """Each point of each curve against a selection of its own."""
    made = select((source,), PREP, None)
    assert [moved.rule for moved in made.sweeps] == ["aesthetic >= 5", "pwatermark < 0.5"]
    for moved, key in zip(made.sweeps, ("aesthetic_at_least", "pwatermark_below"), strict=True):
        assert moved.chosen == made.kept
        assert moved.rows == ROWS
        assert moved.kept[moved.at.index(moved.threshold)] == made.kept
        places = [place for place in range(1, len(moved.at) - 1) if 0 < moved.kept[place] < ROWS][::9]
        assert len(places) > 5
        for place in places:
            other = replace(PREP, select=replace(ASKED, **{key: moved.at[place]}))
            assert select((source,), other, None).kept == moved.kept[place], (moved.rule, moved.at[place])


def test_a_curve_falls_or_rises_and_reaches_the_rule_alone(source: Path) -> None:
    made = select((source,), PREP, None)
    falling, rising = (list(moved.kept) for moved in made.sweeps)
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    only = {count.rule: count.only for count in made.counts}
    assert rising[-1] == made.kept + only["pwatermark < 0.5"]  # without the rule
    first = pq.read_table(source).slice(0, 4).to_pylist()
    lacking = sum(row["WIDTH"] >= 300 and row["pwatermark"] < 0.5 for row in (first[0], first[1], first[3]))
    assert lacking > 0
    assert falling[0] == made.kept + only["aesthetic >= 5"] - lacking  # without a score, or one below the scale


def test_a_threshold_beyond_all_scores_is_on_the_curve() -> None:
    rule = next(each for each in rules(Select(aesthetic_above=9.0), True) if each.bound)
    moved = sweep.of_steps(rule, {60: 5, 62: 1}, chosen=0, rows=10)
    assert moved is not None
    assert moved.at[0] == 3.0
    assert moved.at[-1] == 9.0
    assert moved.kept[:4] == (6, 1, 1, 0)
    assert sweep.of_steps(rule, {}, chosen=0, rows=10) is None


def test_bars_hold_every_row_between_round_ends() -> None:
    assert sweep.bars("aesthetic", {60: 5, 62: 1}) == (3.0, 3.15, (5, 0, 1))
    low, high, counts = sweep.bars("pwatermark", {-7: 2, 0: 3, 99: 4, 10_000: 5})
    width = (high - low) / len(counts)
    assert low <= -0.07
    assert high > 100.0
    assert len(counts) <= sweep.BINS + 1
    assert [index for index, count in enumerate(counts) if count] == [0, 1, len(counts) - 1]
    assert (counts[0], counts[1], counts[-1]) == (2, 7, 5)
    assert width * 100 == pytest.approx(round(width * 100))  # whole steps
    assert sum(counts) == 14


def test_our_own_scores_are_counted_one_by_one(judged: Any) -> None:
    active = thresholds.rules(judged.choice.scoring)
    at = [0.0, 4.0, 4.5, 5.0, 19.0, 25.0]
    rows = [row for row in judged.sharpness if row != 2]  # which was taken down
    with judged.base() as base:
        stored.gather(base, judged.layout)
        for number, passes in ((0, lambda value, low: low <= value < 20), (1, lambda value, high: 5 <= value < high)):
            ((*kept, chosen),) = base.execute(sweep.kept_sql(active, number, at)).fetchall()
            values = [judged.sharpness[row] for row in rows if row / 24 < 0.99]
            assert kept == [sum(passes(value, bound) for value in values) for bound in at]
            assert chosen == sum(5 <= value < 20 for value in values)
            moved = sweep.of_counts(active[number], at, [*kept, chosen], 24)
            assert (moved.kept, moved.chosen, moved.rows) == (tuple(kept), chosen, 24)
