import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.prep import parts


def write_pass(folder: Path, rows: int, files: list[dict[str, int]], start: float) -> None:
    """A pass of `rows`, as img2dataset leaves it: a file for each of the counts of `files`, ten seconds each."""
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"row": range(rows)}), folder / "rows.parquet")
    for number, counts in enumerate(files):
        content = {"start_time": start + 10 * number, "end_time": start + 10 * (number + 1), "status_dict": counts}
        (folder / f"{number:05d}_stats.json").write_text(json.dumps(content))


def test_a_part_of_two_passes_counts_each_row_once(tmp_path: Path) -> None:
    part = tmp_path / "00007"
    first = [{"success": 900, "HTTP 404": 50, "timed out": 50}, {"success": 970, "HTTP 503": 20, "short body": 10}]
    write_pass(part / "first", 2000, first, 100.0)
    told = "part 00007: 1,870 of 2,000 pictures fetched in"
    assert parts.fetched(part) == f"{told} 00:20; lost: HTTP 404 50, timed out 50, HTTP 503 20 and 1 other cause"
    write_pass(part / "second", 70, [{"success": 5, "timed out": 65}], 3_700.0)
    told = told.replace("1,870", "1,875")
    assert parts.fetched(part) == f"{told} 1:00:10; lost: timed out 65, HTTP 404 50, short body 10"


def test_only_the_most_frequent_causes_are_told(tmp_path: Path) -> None:
    write_pass(tmp_path / "00000" / "first", 99, [{f"HTTP {400 + each}": 9 - each for each in range(5)}], 0.0)
    assert parts.fetched(tmp_path / "00000").endswith("lost: HTTP 400 9, HTTP 401 8, HTTP 402 7 and 2 other causes")
    write_pass(tmp_path / "00001" / "first", 5, [{"success": 5}], 0.0)
    assert parts.fetched(tmp_path / "00001") == "part 00001: 5 of 5 pictures fetched in 00:10"
