from dataclasses import replace

import pytest

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep.causes import Cause
from bigdiff.prep.decontaminate import PICTURE
from bigdiff.prep.dedup import NEAR, SAME
from bigdiff.prep.funnel import Line, lines, written
from bigdiff.prep.plan import TAKEN_DOWN, Decided
from bigdiff.prep.select import Count, Selection

SELECTION = Selection(
    rows=100,
    kept=80,
    counts=(Count(rule="aesthetic > 5", left=85, only=12), Count(rule="url not seen before", left=80, only=5)),
    histograms=(),
    columns=("url", "caption"),
)
DECIDED = Decided(
    samples=70,
    counts=(
        Count(rule=TAKEN_DOWN, left=69, only=1),
        Count(rule="sharpness >= 10", left=60, only=7),
        Count(rule=PICTURE, left=58, only=2),
        Count(rule=SAME, left=57, only=1),
        Count(rule=NEAR, left=50, only=7),
    ),
    shards=1,
)
CAUSES = [
    Cause(step="download", cause="HTTP 404", rows=6, example="", shown=()),
    Cause(step="download", cause="timed out", rows=1, example="", shown=()),
    Cause(step="verify", cause="not a picture", rows=3, example="", shown=()),
]
MADE = Manifest(kind="images", shards=(Shard(name="00000", samples=50, bytes=1, sha256="0"),))
PLANNED = [
    Line(label="not taken down", left=69, only=1),
    Line(label="sharpness >= 10", left=60, only=7),
    Line(label="no picture of the evaluation set", left=58, only=2),
    Line(label="not a duplicate", left=57, only=1),
    Line(label="not a near-duplicate", left=50, only=7),
]


def test_every_step_from_the_metadata_to_the_set() -> None:
    assert lines(SELECTION, DECIDED, CAUSES, MADE) == [
        Line(label="all rows", left=100),
        Line(label="aesthetic > 5", left=85, only=12),
        Line(label="url not seen before", left=80, only=5),
        Line(label="downloaded", left=73),
        Line(label="sound picture and caption", left=70),
        *PLANNED,
    ]


def test_a_set_out_of_another_begins_with_its_samples() -> None:
    assert lines(None, DECIDED, [], MADE) == [Line(label="samples of the set before", left=70), *PLANNED]


def test_rows_lost_without_a_cause_are_noticed() -> None:
    with pytest.raises(RunError, match="1 rows were lost without a cause"):
        lines(replace(SELECTION, kept=81), DECIDED, CAUSES, MADE)
    short = replace(MADE, shards=(replace(MADE.shards[0], samples=49),))
    with pytest.raises(RunError, match="50 samples were planned, 49 packed"):
        lines(None, DECIDED, [], short)


def test_the_table_says_what_was_lost_where() -> None:
    page = written(lines(SELECTION, DECIDED, CAUSES, MADE))
    assert '<td>aesthetic &gt; 5</td><td class="n">85</td><td class="n">15</td><td class="n">12</td>' in page
    assert '<td>downloaded</td><td class="n">73</td><td class="n">7</td><td class="n"></td>' in page
    assert '<td>not a near-duplicate</td><td class="n">50</td><td class="n">7</td><td class="n">7</td>' in page
