from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Download, Pack, Prep, Select
from bigdiff.prep.select import Selection, inputs, select

NAN = float("nan")


def metadata(folder: Path, name: str = "a.parquet", **columns: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def run(source: Path, output: Path | None, **chosen: Any) -> Selection:
    return select(inputs(source), Prep(select=Select(**chosen)), output)


def left(selection: Selection) -> dict[str, tuple[int, int]]:
    return {count.rule: (count.left, count.only) for count in selection.counts}


def test_sequential_counts_and_what_each_rule_alone_rejects(tmp_path: Path) -> None:
    metadata(
        tmp_path / "meta",
        URL=[f"http://example.com/{each}" for each in "abcde"],
        TEXT=["one", "two", "three", "four", ""],
        AESTHETIC_SCORE=[6.0, 4.0, 4.0, NAN, 6.0],
        pwatermark=[0.1, 0.1, 0.9, 0.1, 0.1],
    )
    made = run(tmp_path / "meta", tmp_path / "selected.parquet", aesthetic_above=5.0, pwatermark_below=0.5)
    counts = left(made)
    assert (made.rows, made.kept) == (5, 1)
    assert counts["caption present"] == (4, 1)
    assert counts["aesthetic > 5"] == (1, 2)  # b and d; c is refused by two rules
    assert counts["pwatermark < 0.5"] == (1, 0)
    table = pq.read_table(tmp_path / "selected.parquet")
    assert table.to_pylist() == [
        {"row": 0, "url": "http://example.com/a", "caption": "one", "pwatermark": 0.1, "aesthetic": 6.0}
    ]
    drawn = {each.score: each for each in made.histograms}
    assert drawn["aesthetic"].absent == 1
    assert sum(drawn["aesthetic"].counts) == 4
    assert drawn["aesthetic"].threshold == 5.0


def test_names_of_other_releases_and_mixed_files(tmp_path: Path) -> None:
    metadata(tmp_path / "meta", "a.parquet", URL=["http://example.com/a"], TEXT=["one"], WIDTH=[600.0], HEIGHT=[700])
    metadata(tmp_path / "meta", "b.parquet", url=["http://example.com/b"], Caption=["two"], width=["800"], height=[90])
    run(tmp_path / "meta", tmp_path / "selected.parquet", min_width=512)
    found = pq.read_table(tmp_path / "selected.parquet").sort_by("url").drop_columns("row")
    assert found.to_pylist() == [
        {"url": "http://example.com/a", "caption": "one", "width": 600, "height": 700},
        {"url": "http://example.com/b", "caption": "two", "width": 800, "height": 90},
    ]


def test_the_order_is_shuffled_by_the_seed_and_does_not_hang_on_the_inputs(tmp_path: Path) -> None:
    urls = [f"http://example.com/{number}" for number in range(500)]
    metadata(tmp_path / "x", URL=urls, TEXT=urls)
    metadata(tmp_path / "y", "1.parquet", TEXT=urls[300:], URL=urls[300:])
    metadata(tmp_path / "y", "2.parquet", TEXT=urls[:310], URL=urls[:310])  # ten rows twice
    for source, output in (("x", "first"), ("x", "again"), ("y", "split")):
        run(tmp_path / source, tmp_path / output)
    first, again, split = (tmp_path / name for name in ("first", "again", "split"))
    assert first.read_bytes() == again.read_bytes()
    assert pq.read_table(first).to_pylist() == pq.read_table(split).to_pylist()
    order = pq.read_table(first)["url"].to_pylist()
    assert sorted(order) == sorted(urls)
    assert order != urls
    select(inputs(tmp_path / "x"), Prep(pack=Pack(seed=1)), tmp_path / "other")
    assert pq.read_table(tmp_path / "other")["url"].to_pylist() != order


def test_of_rows_with_one_url_one_is_kept(tmp_path: Path) -> None:
    metadata(tmp_path, URL=["http://example.com/a"] * 3, TEXT=["b", "a", "c"])
    made = run(tmp_path, tmp_path / "selected.parquet")
    assert left(made)["url not seen before"] == (1, 2)
    assert pq.read_table(tmp_path / "selected.parquet")["caption"].to_pylist() == ["a"]


def test_loopback_is_selected_where_it_is_allowed(tmp_path: Path) -> None:
    metadata(tmp_path, URL=["http://127.0.0.1:1/a"], TEXT=["a"])
    allowed = Prep(download=Download(allow_private_addresses=True))
    assert select(inputs(tmp_path), allowed, None).kept == 1
    with pytest.raises(UsageError, match=r"download\.allow_private_addresses"):
        run(tmp_path, None)


def test_a_missing_column_names_file_column_and_mend(tmp_path: Path) -> None:
    file = metadata(tmp_path, URL=["http://example.com/a"], TEXT=["a"])
    with pytest.raises(UsageError, match=rf"{file} has no column for aesthetic .*select\.aesthetic_above=null"):
        run(tmp_path, None, aesthetic_above=5.0)
    metadata(tmp_path / "b", LINK=["http://example.com/a"], TEXT=["a"])
    with pytest.raises(UsageError, match=r"no column for url"):
        run(tmp_path / "b", None)


def test_two_columns_of_one_meaning_are_refused(tmp_path: Path) -> None:
    metadata(tmp_path, URL=["http://example.com/a"], TEXT=["a"], aesthetic=[1.0], AESTHETIC_SCORE=[2.0])
    with pytest.raises(UsageError, match="AESTHETIC_SCORE and aesthetic"):
        run(tmp_path, None)


@pytest.mark.parametrize("damage", [lambda data: b"not parquet", lambda data: data[: len(data) // 2], lambda data: b""])
def test_an_unreadable_file_is_named(tmp_path: Path, damage: Any) -> None:
    file = metadata(tmp_path, URL=["http://example.com/a"] * 100, TEXT=["a"] * 100)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=r"a\.parquet is not a readable parquet file"):
        run(tmp_path, None)


def test_a_selection_that_keeps_nothing_names_the_rule(tmp_path: Path) -> None:
    metadata(tmp_path, URL=["http://example.com/a"], TEXT=["a"], WIDTH=[5])
    with pytest.raises(UsageError, match=r"'width >= 9'.*loosen select\.min_width"):
        run(tmp_path, None, min_width=9)
    assert not (tmp_path / "selected.parquet").exists()


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \*\.parquet"):
        inputs(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        inputs(tmp_path / "nowhere")
