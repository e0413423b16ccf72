import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bigdiff.config.prep import Pack, Prep
from bigdiff.prep import causes
from bigdiff.prep.causes import LISTED, SHOWN, Cause, lost, written
from bigdiff.prep.layout import Layout
from bigdiff.prep.plan import TAKEN_DOWN, Choice, plan
from bigdiff.prep.query import database
from bigdiff.prep.verify import REJECTED_SCHEMA, units, verify


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (side, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def test_causes_of_a_download_with_their_first_url_and_pictures(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([png(20), "HTTP 404", b"<html>", png(5), "HTTP 404", png(6), png(7), png(20), "timed out"])
    prep = Prep(pack=Pack(resolution=16, min_side=10))
    for unit in units(layout, prep):
        verify(unit)
    plan(layout, Choice(samples_per_shard=9))
    with database(None, None) as base:
        found = causes.causes(base, layout)
    assert [(each.step, each.cause, each.rows, each.example[-2:]) for each in found] == [
        ("download", "HTTP 404", 2, "/1"),
        ("download", "timed out", 1, "/8"),
        ("verify", "smaller than pack.min_side", 3, "/3"),
        ("verify", "not a picture", 1, "/2"),
        ("duplicate", "same picture as another row's", 1, "/7"),
    ]
    assert [each.shown for each in found] == [(), (), (3, 5), (), (7,)]  # two of a cause and unit are kept
    assert len(found[2].pictures) == 2
    assert (lost(found, "download"), lost(found, "verify")) == (3, 4)


def test_of_many_units_the_first_pictures_are_shown(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([png(20)])
    for unit in units(layout, Prep(pack=Pack(resolution=16))):
        verify(unit)
    plan(layout, Choice(samples_per_shard=9))
    for unit in range(9, 0, -1):
        rows = [
            {"row": 10 * unit + each, "url": "u", "step": "verify", "cause": "c", "picture": b"%d" % (10 * unit + each)}
            for each in range(2)
        ]
        pq.write_table(pa.Table.from_pylist(rows, REJECTED_SCHEMA), layout.rejected / f"{unit}.parquet")
    with database(None, None) as base:
        (found,) = causes.causes(base, layout)
    assert found.rows == 18
    assert found.shown == (10, 11, 20, 21, 30, 31)
    assert len(found.shown) == SHOWN
    assert found.pictures == tuple(b"%d" % row for row in found.shown)


def test_what_was_taken_down_is_counted_and_neither_named_nor_shown(judged: Any) -> None:
    with judged.base() as base:
        found = causes.causes(base, judged.layout)
    taken = next(each for each in found if each.cause == TAKEN_DOWN)
    assert (taken.rows, taken.example, taken.shown) == (1, "", ())


def test_a_table_of_many_causes_ends() -> None:
    found = [
        Cause(step="download", cause=f"HTTP <{number}>", rows=1000 - number, example='http://a/"><b>', shown=())
        for number in range(100)
    ]
    page = written(found, "Not downloaded")
    assert page.count("<tr>") == 1 + LISTED
    assert f"Not downloaded: {sum(each.rows for each in found):,}" in page
    assert f"60 further causes with {sum(each.rows for each in found[LISTED:]):,} rows" in page
    assert "<b>" not in page
    assert "<p>None.</p>" in written([], "Not downloaded")
