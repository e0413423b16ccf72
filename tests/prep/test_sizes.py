import duckdb
import pyarrow as pa
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Select
from bigdiff.prep.sizes import Votes, decide, is_needed, note, query


@pytest.mark.parametrize(
    ("url", "width", "height", "votes"),
    [
        ("http://example.com/a-800x600.jpg", 800, 600, (1, 0)),
        ("http://example.com/a-800x600.jpg", 600, 800, (0, 1)),
        ("http://example.com/a_800X600.JPEG?v=2", 600, 800, (0, 1)),
        ("http://example.com/a-800x600.webp#x", 800, 600, (1, 0)),
        ("http://example.com/a-800x600.jpg", 800, 601, (0, 0)),  # it was replaced
        ("http://example.com/a-600x600.jpg", 600, 600, (0, 0)),
        ("http://example.com/800x600/a.jpg", 600, 800, (0, 0)),  # a folder of the largest size, often
        ("http://example.com/a-800x600.jpg", None, 800, (0, 0)),
        ("http://example.com/a-99999999999999999999x1.jpg", 1, 2, (0, 0)),
        (None, 600, 800, (0, 0)),
    ],
)
def test_what_one_url_says(url: str | None, width: int | None, height: int, votes: tuple[int, int]) -> None:
    row = {"url": pa.array([url], pa.string()), "width": pa.array([width], pa.int64()), "height": [height]}
    with duckdb.connect() as base:
        base.register("seen", pa.table(row))
        assert base.execute(query("seen")).fetchall() == [votes]


@pytest.mark.parametrize(
    ("straight", "swapped", "exchanged"),
    [(0, 0, False), (0, 9, False), (0, 10, True), (1, 9, True), (10, 0, False), (9, 1, False), (5, 95, True)],
)
def test_what_many_say(straight: int, swapped: int, exchanged: bool) -> None:
    votes = Votes(straight=straight, swapped=swapped)
    assert decide(votes) is exchanged
    assert f"{straight} as they are named, {swapped} exchanged" in note(votes)
    assert ("are read exchanged" in note(votes)) is exchanged


def test_releases_of_both_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"4 as they are named, 7 exchanged.*select\.swapped_sizes"):
        decide(Votes(straight=4, swapped=7))


def test_it_is_only_asked_where_a_rule_depends_on_it() -> None:
    assert not is_needed(Select())
    assert not is_needed(Select(min_width=512, min_height=512, max_aspect=2.0))
    assert is_needed(Select(min_width=512))
    assert not is_needed(Select(min_width=512, swapped_sizes="never"))
