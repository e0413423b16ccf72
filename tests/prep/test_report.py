import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Pack, Prep
from bigdiff.data.manifest import Manifest
from bigdiff.prep import report
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import Task, write_shard
from bigdiff.prep.plan import Choice, plan
from bigdiff.prep.query import database
from bigdiff.prep.select import Count, Histogram, Selection
from bigdiff.prep.sweep import Sweep
from bigdiff.prep.verify import units, verify

PREP = Prep(pack=Pack(resolution=16, min_side=10))
SELECTION = Selection(
    rows=9,
    kept=6,
    counts=(Count(rule="aesthetic > 5", left=7, only=2), Count(rule="url not seen before", left=6, only=1)),
    histograms=(Histogram(score="aesthetic", low=0.0, high=9.0, counts=(2, 7), absent=0, threshold=5.0),),
    columns=("url", "caption", "aesthetic"),
)
SWEEP = Sweep(
    rule="aesthetic > 5", score="aesthetic", comparison=">", threshold=5.0, at=(0.0, 9.0), kept=(7, 1), chosen=3, rows=9
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
    number = len(plan(layout, Choice(samples_per_shard=PREP.pack.samples_per_shard)).shards)
    shards = tuple(write_shard(Task(output=layout.output, number=each, format="jpg")) for each in range(number))
    return layout, Manifest(
        kind="images", shards=shards, contract={"resolution": 16, "format": "jpg"}, lineage={"a": 1}
    )


def text(page: str) -> list[str]:
    return [part for part in re.sub(r"<style>.*?</style>|<[^>]+>", "\n", page, flags=re.S).split("\n") if part.strip()]


def test_the_funnel_ends_with_the_number_of_samples(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, Choice(samples_per_shard=9), manifest)
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


TAGS = (
    " html head meta title style body h1 h2 h3 p div b span nav a table thead tbody tr th td i bdi small figure img "
    "figcaption svg rect line text polyline circle details summary pre "
)
EVIL = "\"'><img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>\u202e"


class Reader(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.targets: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            for found, wanted in ((self.sources, "src"), (self.targets, "href"), (self.names, "id")):
                if name == wanted:
                    found.append(value or "")


def check(page: str) -> None:
    """Nothing is fetched, nothing runs, and links lead to places of the page."""
    reader = Reader()
    reader.feed(page)
    assert [tag for tag in reader.tags if f" {tag} " not in TAGS] == []
    assert not [name for name in reader.attributes if name.startswith("on")]
    assert reader.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    assert reader.targets == [f"#{name}" for name in reader.names]
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


def test_it_fetches_nothing_runs_nothing_and_is_well_formed(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, Choice(samples_per_shard=9), manifest)
    page = layout.report.read_text()
    check(page)
    assert "&lt;script&gt;" in page


def test_strangers_texts_stay_texts_wherever_they_stand(downloaded: Callable[..., Layout]) -> None:
    """Captions, URLs, causes, languages, hosts, names of rules and settings."""
    rows = [picture(1), picture(200), picture(1), f"HTTP {EVIL}", b"<html>", picture(5, 5), f"opted out: {EVIL}"]
    layout = downloaded(rows, captions=dict.fromkeys(range(9), EVIL), second={3: b"x"})
    table = pq.read_table(layout.selected)
    urls = [f"http://{EVIL}{row}/{EVIL}" for row in range(len(rows))]
    table = table.set_column(1, "url", [urls]).append_column("language", [[EVIL] * len(rows)])
    pq.write_table(table, layout.selected)
    for unit in units(layout, PREP):
        verify(replace(unit, retried=False))
    (layout.rejected / "00000-1-00000.parquet").unlink()
    plan(layout, Choice(samples_per_shard=9))
    shard = write_shard(Task(output=layout.output, number=0, format="jpg"))
    selection = replace(
        SELECTION,
        kept=len(rows),
        counts=(Count(rule=EVIL, left=len(rows), only=0),),
        histograms=(replace(SELECTION.histograms[0], score=EVIL),),
        sweeps=(replace(SWEEP, score=EVIL, rule=EVIL), SWEEP),
        notes=(EVIL,),
    )
    contract = {"resolution": 16, "format": "jpg"}
    manifest = Manifest(kind="images", shards=(shard,), contract=contract, lineage={EVIL: EVIL})
    report.write(layout, selection, Choice(samples_per_shard=9), manifest)
    page = layout.report.read_text()
    check(page)
    assert page.count("&lt;script&gt;") > 20


def test_what_was_taken_down_is_nowhere_on_the_page(judged: Any) -> None:
    report.write(judged.layout, None, judged.choice, judged.made)
    page = judged.layout.report.read_text()
    check(page)
    for title in ("funnel", "scores-of-the-stored-samples", "sizes", "borderline", "duplicates", "kept", "refused"):
        assert f'id="{title}"' in page, title
    assert "caption &lt;2&gt;" not in page
    assert "http://example.com/2<" not in page
    assert "caption &lt;3&gt;" in page
    assert not (judged.layout.work / "duckdb").exists()


def test_what_the_plan_warns_of_is_said(judged: Any) -> None:
    content = json.loads(judged.layout.decided.read_text())
    judged.layout.decided.write_text(json.dumps({**content, "notes": ["look at <these>"]}))
    report.write(judged.layout, None, judged.choice, judged.made)
    assert "<p>look at &lt;these&gt;.</p>" in judged.layout.report.read_text()


def test_a_long_lineage_is_cut(judged: Any) -> None:
    long = replace(judged.made, lineage={"inputs": {f"{number}.parquet": "0" * 64 for number in range(9_000)}})
    report.write(judged.layout, None, judged.choice, long)
    page = judged.layout.report.read_text()
    assert "all of it is in manifest.json" in page
    assert len(page) < 1_500_000


def test_the_same_bytes_each_time(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    report.write(layout, SELECTION, Choice(samples_per_shard=9), manifest)
    before = layout.report.read_bytes()
    report.write(layout, SELECTION, Choice(samples_per_shard=9), manifest)
    assert layout.report.read_bytes() == before


def test_rows_lost_without_a_cause_are_noticed(made: tuple[Layout, Manifest]) -> None:
    layout, manifest = made
    wrong = Selection(rows=9, kept=7, counts=SELECTION.counts, histograms=(), columns=("url",))
    with pytest.raises(RunError, match="lost without a cause"):
        report.write(layout, wrong, Choice(samples_per_shard=9), manifest)


def test_what_the_stored_pictures_say_of_the_metadatas_sizes(downloaded: Callable[..., Layout]) -> None:
    def wide(shade: int, size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (shade, 90, 40)).save(buffer, "PNG")
        return buffer.getvalue()

    layout = downloaded([wide(each * 20, (30, 20)) for each in range(5)] + [wide(9, (20, 20))])
    told = {"width": [20, 20, 20, 30, 640, 20], "height": [30, 30, 30, 20, 480, 20]}
    table = pq.read_table(layout.selected)
    for name, values in told.items():
        table = table.append_column(name, [values])
    pq.write_table(table, layout.selected)
    for unit in units(layout, PREP):
        verify(unit)
    selection = replace(SELECTION, columns=("url", "caption", "width", "height"), notes=("caption is read from <b>",))
    with database(layout.work / "duckdb", None) as base:
        lines = text(report._notes(base, layout, selection))
    assert lines == [
        "Caption is read from &lt;b&gt;.",
        "The metadata&#x27;s width and height are exchanged in 3 of 5 stored pictures that are not square; "
        "1 are as it says, 1 of another size.",
    ]
    assert not (layout.work / "duckdb").exists()
