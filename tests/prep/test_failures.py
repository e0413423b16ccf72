import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.prep import Prep
from bigdiff.prep.failures import HOSTS, host_sql, second_tries, written
from bigdiff.prep.layout import Layout
from bigdiff.prep.query import database
from bigdiff.prep.verify import REJECTED_SCHEMA, units, verify


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example/x", "a.example"),
        ("HTTPS://A.Example:8080/x", "a.example"),
        ("http://user:word@a.example/x@b.example", "a.example"),
        ("http://a.example?x=http://b.example/", "a.example"),
        ("http://a.example#@b.example", "a.example"),
        ("http://[2001:db8::1]:80/x", "[2001:db8::1]"),
        ("nonsense", ""),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert duckdb.execute(f"SELECT {host_sql('url')} FROM (SELECT ? AS url)", [url]).fetchall() == [(host,)]


def texts(parts: tuple[str, ...]) -> list[list[str]]:
    """The rows of all tables, cell by cell."""
    rows = re.findall(r"<tr>(.*?)</tr>", "".join(parts))
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.split(r"</t[hd]>", row)[:-1]] for row in rows]


def job(folder: Path, hosts: dict[str, tuple[int, int]], cause: str) -> Layout:
    """A job whose hosts have (URLs, failures)."""
    layout = Layout(folder)
    layout.rejected.mkdir(parents=True)
    urls = [(host, number < lost) for host, (asked, lost) in hosts.items() for number in range(asked)]
    rows = [{"row": row, "url": f"http://{host}/{row}"} for row, (host, _) in enumerate(urls)]
    pq.write_table(pa.Table.from_pylist(rows), layout.selected)
    failed = [
        {**row, "step": "download", "cause": cause, "picture": None}
        for row, (_, is_lost) in zip(rows, urls, strict=True)
        if is_lost
    ]
    pq.write_table(pa.Table.from_pylist(failed, REJECTED_SCHEMA), layout.rejected / "a.parquet")
    return layout


def test_the_hosts_with_most_failures_and_their_share(tmp_path: Path) -> None:
    hosts = {f"h{number:02d}.example": (40, number) for number in range(30)} | {"<b>.example": (50, 50)}
    layout = job(tmp_path, hosts, "HTTP 403")
    with database(None, None) as base:
        parts = written(base, layout)
    rows = texts(parts)[1:]
    assert len(rows) == HOSTS
    assert rows[0] == ["&lt;b&gt;.example", "50", "50", "100.0%", "", "HTTP 403"]
    assert rows[1] == ["h29.example", "29", "40", "72.5%", "", "HTTP 403"]
    assert [int(row[1]) for row in rows] == [50, *range(29, 10, -1)]
    assert f"The {HOSTS} of 30 hosts" in "".join(parts)  # one has no failure


def test_opt_outs_are_counted_by_their_signal(tmp_path: Path) -> None:
    layout = job(tmp_path, {"a.example": (5, 3), "b.example": (5, 4)}, "opted out: X-Robots-Tag noai")
    with database(None, None) as base:
        rows = texts(written(base, layout))
    assert ["X-Robots-Tag noai", "7", "2", ""] in rows


def test_what_a_second_try_has_brought_is_told_and_not_written(downloaded: Callable[..., Layout]) -> None:
    first = [b"x", "HTTP 503", "HTTP 503", "timed out", "HTTP 404", "HTTP 429"]
    layout = downloaded(first, second={1: b"y", 2: "HTTP 503", 3: "timed out", 5: b"z"})
    for unit in units(layout, Prep()):
        verify(unit)
    assert second_tries(layout) == (
        "the second pass brought 2 of 4 pictures that the first lost for a passing reason "
        "(HTTP 503: 1 of 2, HTTP 429: 1 of 1, timed out: 0 of 1)"
    )
    with database(None, None) as base:
        assert "429" not in "".join(written(base, layout))


def test_without_a_second_pass_or_a_download_there_is_nothing_to_say(
    downloaded: Callable[..., Layout], tmp_path: Path
) -> None:
    layout = downloaded([b"x", "HTTP 404"])
    for unit in units(layout, Prep()):
        verify(unit)
    assert second_tries(layout) == ""
    assert second_tries(Layout(tmp_path / "other")) == ""
    with database(None, None) as base:
        assert written(base, Layout(tmp_path / "other")) == ()
