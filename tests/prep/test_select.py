import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.prep import Download, Pack, Prep, Select
from bigdiff.prep.rules import DUPLICATE
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
    assert counts["caption present"] == (1, 1)
    assert counts["aesthetic > 5"] == (2, 2)  # b and d; c is refused by two rules
    assert counts["pwatermark < 0.5"] == (2, 0)
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
    output = tmp_path / "of" / "selected.parquet"
    for before in (None, b"an older selection"):
        if before:
            output.write_bytes(before)
        for written in (output, None):
            with pytest.raises(UsageError, match=r"'width >= 9'.*loosen select\.min_width"):
                run(tmp_path, written, min_width=9)
        assert [path.read_bytes() for path in output.parent.iterdir()] == ([before] if before else [])


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \*\.parquet"):
        inputs(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        inputs(tmp_path / "nowhere")


def test_the_outcome_does_not_hang_on_the_memory(tmp_path: Path) -> None:
    urls = [f"http://example.com/{number}" for number in range(3000)]
    metadata(tmp_path / "meta", URL=urls, TEXT=urls)
    for output, limit in (("free", None), ("bounded", 0.05)):
        run(tmp_path / "meta", tmp_path / output, memory_gb=limit)
    assert (tmp_path / "free").read_bytes() == (tmp_path / "bounded").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"meta", "free", "bounded"}


def test_refused_rows_go_to_no_disk(tmp_path: Path) -> None:
    """Rows are handed on as they are read: with memory for a part of them, only those that are kept may spill."""
    captions = [f"{number} {'word ' * 1000}" for number in range(1000)]
    for name in "abcdefghij":
        urls = [f"http://example.com/{name}{number}" for number in range(1000)]
        metadata(
            tmp_path / "meta",
            f"{name}.parquet",
            URL=urls * 4,
            TEXT=captions * 4,
            WIDTH=[number % 10 for number in range(4000)],
        )
    folder, spilled = tmp_path / "set" / "duckdb", 0
    with ThreadPoolExecutor(1) as thread:
        selecting = thread.submit(
            run, tmp_path / "meta", folder.parent / "selected.parquet", min_width=9, memory_gb=0.1
        )
        while not selecting.done():
            with suppress(FileNotFoundError):  # deleted while we looked
                spilled = max(spilled, sum(path.stat().st_size for path in folder.glob("*")))
            time.sleep(0.01)
    assert (selecting.result().rows, selecting.result().kept) == (40_000, 1000)
    assert spilled == 0


def test_counts_agree_with_the_rows_one_by_one(tmp_path: Path) -> None:
    """Sets of failed rules, counted once, give the same as asking each rule of each row."""
    number = range(400)
    rows = {
        "URL": [f"http{'s' * (each % 2)}://{'10.0.0.1' if each % 7 == 0 else 'example.com'}/{each}" for each in number],
        "TEXT": ["" if each % 11 == 0 else "a" for each in number],
        "WIDTH": [each * 3 % 800 for each in number],
        "HEIGHT": [each * 5 % 800 for each in number],
        "punsafe": [None if each % 13 == 0 else each % 10 / 10 for each in number],
    }
    metadata(tmp_path, **rows)
    made = run(
        tmp_path, tmp_path / "selected.parquet", min_width=100, min_height=200, max_aspect=2.0, punsafe_below=0.5
    )
    asked = {
        "width >= 100": [width >= 100 for width in rows["WIDTH"]],
        "height >= 200": [height >= 200 for height in rows["HEIGHT"]],
        "aspect <= 2": [
            min(each) > 0 and max(each) / min(each) <= 2 for each in zip(rows["WIDTH"], rows["HEIGHT"], strict=True)
        ],
        "punsafe < 0.5": [score is not None and score < 0.5 for score in rows["punsafe"]],
        "url present": [True for _ in number],
        "url is http or https": [True for _ in number],
        "url is public": [each % 7 != 0 for each in number],
        "caption present": [each % 11 != 0 for each in number],
    }
    assert [count.rule for count in made.counts] == [*asked, DUPLICATE]
    per_row = list(zip(*asked.values(), strict=True))
    for place, (rule, passed) in enumerate(asked.items()):
        left_over = sum(all(each[: place + 1]) for each in per_row)
        only = sum(not each[place] and all(each[:place] + each[place + 1 :]) for each in per_row)
        assert left(made)[rule] == (left_over, only), (rule, passed)
    kept = {rows["URL"][each] for each in number if all(per_row[each])}
    assert {*pq.read_table(tmp_path / "selected.parquet")["url"].to_pylist()} == kept
    (tmp_path / "selected.parquet").unlink()
    assert made == run(tmp_path, None, min_width=100, min_height=200, max_aspect=2.0, punsafe_below=0.5)


def wide(count: int, exchanged: bool) -> dict[str, list[Any]]:
    """Pictures of 800 x 600 whose URLs say so."""
    sizes = {"WIDTH": [800] * count, "HEIGHT": [600] * count}
    if exchanged:
        sizes = {"WIDTH": sizes["HEIGHT"], "HEIGHT": sizes["WIDTH"]}
    return {"URL": [f"http://example.com/{each}-800x600.jpg" for each in range(count)], "TEXT": ["a"] * count, **sizes}


@pytest.mark.parametrize("exchanged", [True, False])
def test_exchanged_sizes_are_noticed_by_the_urls(tmp_path: Path, exchanged: bool) -> None:
    metadata(tmp_path / "meta", **wide(50, exchanged))
    made = run(tmp_path / "meta", tmp_path / "selected.parquet", min_width=700)
    assert made.kept == 50
    assert pq.read_table(tmp_path / "selected.parquet")["width"].to_pylist() == [800] * 50
    assert any(("read exchanged" in note) is exchanged for note in made.notes)
    other = "always" if not exchanged else "never"
    with pytest.raises(UsageError, match="'width >= 700'"):
        run(tmp_path / "meta", None, min_width=700, swapped_sizes=other)


def test_releases_that_disagree_about_width_are_refused(tmp_path: Path) -> None:
    metadata(tmp_path, "a.parquet", **wide(50, True))
    metadata(tmp_path, "b.parquet", **wide(40, False))
    with pytest.raises(UsageError, match=r"40 as they are named, 50 exchanged"):
        run(tmp_path, None, min_width=700)
    assert (
        run(tmp_path, None, min_width=600, min_height=600).kept == 50
    )  # of two releases with one URL, nothing to decide


def test_urls_and_captions_that_are_odd_are_counted_not_stumbled_over(tmp_path: Path) -> None:
    good = [
        "HTTP://EXAMPLE.COM/A.JPG",
        "http://example.com/a b.jpg",
        "http://example.com/\u00e4\u4e2d.jpg",
        "https://m\u00fcller.example/a.jpg",
        "http://example.com/" + "a" * 100_000,
        "http://example.com/nul",
        "http://example.com/long",
    ]
    bad = [
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "ftp://example.com/a",
        "//example.com/a",
        "",
        "   ",
        None,
    ]
    captions = ["a", "b", "c", "d", "e", "nul\0inside", "word " * 20_000, *["x"] * len(bad)]
    metadata(tmp_path / "meta", URL=[*good, *bad], TEXT=captions)
    made = run(tmp_path / "meta", tmp_path / "selected.parquet")
    assert left(made)["url present"] == (len(good) + 4, 0)  # an empty URL fails the next rule, too
    assert left(made)["url is http or https"] == (len(good), 4)
    table = pq.read_table(tmp_path / "selected.parquet")
    assert {*table["url"].to_pylist()} == {*good}
    assert {*table["caption"].to_pylist()} == {*captions[: len(good)]}


@pytest.mark.parametrize("column", ["URL", "TEXT"])
def test_bytes_that_are_no_text(tmp_path: Path, column: str) -> None:
    broken = pa.array([b"http://example.com/a\xff", b"http://example.com/b"], pa.binary())
    other = {"URL": ["http://example.com/1", "http://example.com/2"], "TEXT": ["a", "b"]}
    metadata(tmp_path / "binary", **{**other, column: broken})
    assert run(tmp_path / "binary", None).kept == 1  # the other is counted as absent
    metadata(tmp_path / "string", **{**other, column: broken.view(pa.string())})
    with pytest.raises(UsageError, match=r"a\.parquet.*is not valid UTF8.*Write that column as binary"):
        run(tmp_path / "string", None)


def test_a_full_disk_or_too_little_memory_is_no_fault_of_the_metadata(tmp_path: Path) -> None:
    metadata(tmp_path / "meta", URL=["http://example.com/a"], TEXT=["a"])
    with pytest.raises(RunError, match=r"select\.memory_gb"):
        run(tmp_path / "meta", tmp_path / "selected.parquet", memory_gb=0.001)
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]
