import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Pack, Prep
from bigdiff.data.manifest import Manifest
from bigdiff.prep import report
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import Task, plan, write_shard
from bigdiff.prep.select import Count, Histogram, Selection
from bigdiff.prep.verify import units, verify

PREP = Prep(pack=Pack(resolution=16, min_side=10))
SELECTION = Selection(
    rows=9,
    kept=6,
    counts=(Count(rule="aesthetic > 5", left=7, only=2), Count(rule="url not seen before", left=6, only=1)),
    histograms=(Histogram(score="aesthetic", low=0.0, high=9.0, counts=(2, 7), absent=0, threshold=5.0),),
    columns=("url", "caption", "aesthetic"),
)


def picture(shade: int, side: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def made(downloaded: Callable[..., Layout]) -> tuple[Layout, Manifest]:
    rows = [picture(1), picture(200), picture(1), "HTTP 404", b"<html>", picture(5, 5)]
    layout = downloaded(rows, captions={0: "<script>alert(1)</script>"})
    for unit in units(layout, PREP):
        verify(unit)
    number = plan(layout, PREP.pack)
    shards = tuple(write_shard(Task(output=layout.output, number=each, format="jpg")) for each in range(number))
    return layout, Manifest(
        kind="images", shards=shards, contract={"resolution": 16, "format": "jpg"}, lineage={"a": 1}
    )


def text(page: str) -> list[str]:
    return [part for part in re.sub(r"<style>.*?</style>|<[^>]+>", "\n", page, flags=re.S).split("\n") if part.strip()]


def test_the_funnel_ends_with_the_number_of_samples(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, manifest)
    lines = text(layout.report.read_text())
    at = lines.index("all rows")
    assert lines[at : at + 3] == ["all rows", "9", "0"]
    at = lines.index("aesthetic &gt; 5")
    assert lines[at : at + 4] == ["aesthetic &gt; 5", "7", "2", "2"]
    for step, left, lost in (
        ("downloaded", "5", "1"),
        ("sound picture and caption", "3", "2"),
        ("not a duplicate", "2", "1"),
    ):
        at = lines.index(step)
        assert lines[at : at + 3] == [step, left, lost]
    assert "HTTP 404" in lines
    assert "smaller than pack.min_side" in lines
    assert "same picture as another row&#x27;s" in lines


def test_it_fetches_nothing_runs_nothing_and_is_well_formed(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, manifest)
    page = layout.report.read_text()
    sources: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            sources.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "script" not in tags
    assert "&lt;script&gt;" in page
    assert "url(" not in page
    assert "@import" not in page


def test_the_same_bytes_each_time(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, manifest)
    before = layout.report.read_bytes()
    report.write(layout, SELECTION, manifest)
    assert layout.report.read_bytes() == before


def test_rows_lost_without_a_cause_are_noticed(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    wrong = Selection(rows=9, kept=7, counts=SELECTION.counts, histograms=(), columns=("url",))
    with pytest.raises(RunError, match="lost without a cause"):
        report.write(layout, wrong, manifest)
