from pathlib import Path

import pyarrow as pa
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.damage import TOMBSTONE, Quarantine, Tombstones, budget_left, over_budget, read_tombstones

INDEX = pa.table(
    {
        "key": ["a", "b", "c", "d"],
        "url": ["http://x/1", None, "http://x/3", ""],
        "sha256": ["00", "11", "22", "33"],
    }
)


@pytest.mark.parametrize(
    ("entries", "rows"),
    [
        ({"b"}, [False, True, False, False]),
        ({"http://x/3"}, [False, False, True, False]),
        ({"00", "d", "nobody"}, [True, False, False, True]),
        (set(), [False] * 4),
    ],
)
def test_tombstones_name_keys_urls_and_hashes(entries: set[str], rows: list[bool]) -> None:
    assert Tombstones(entries=frozenset(entries)).rows(INDEX).tolist() == rows


def test_an_index_may_lack_urls() -> None:
    assert Tombstones(entries=frozenset({"c"})).rows(INDEX.select(["key"])).tolist() == [False, False, True, False]


def test_a_list_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "takedown.txt"
    file.write_text("one\n\n  http://x/2 \n")
    assert read_tombstones(str(file)).entries == {"one", "http://x/2"}
    assert read_tombstones("").entries == frozenset()
    with pytest.raises(UsageError, match=r"nowhere\.txt"):
        read_tombstones(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("samples", "damaged", "left"), [(0, 0, True), (0, 10, True), (0, 11, False), (5000, 50, True), (5000, 51, False)]
)
def test_the_budget_is_a_share_of_what_was_read(samples: int, damaged: int, left: bool) -> None:
    assert budget_left(samples, damaged, 0.01) is left
    assert "0.01" in str(over_budget(samples, damaged, 0.01))


def test_damage_is_counted_apart_from_tombstones_and_told_once_per_shard() -> None:
    lines: list[str] = []
    quarantine = Quarantine(warn=lines.append)
    for row in range(3):
        quarantine.report("set/00001.tar", row, 512 * row, "bytes differ from the index's checksum")
    quarantine.report("set/00002.tar", 7, None, "missing")
    quarantine.report("set/00002.tar", 8, 1024, TOMBSTONE)
    assert (quarantine.damaged, quarantine.dead) == (4, 1)
    assert [line.split(",")[0] for line in lines] == ["set/00001.tar", "set/00002.tar"]
    assert "sample 0" in lines[0] and "substituted" in lines[0]
