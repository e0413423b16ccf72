import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.prep import Download
from bigdiff.data import index
from bigdiff.prep.img2dataset_rows import _settled, write_failed
from bigdiff.prep.layout import DONE, PUBLISHED, ROWS
from bigdiff.quickstart.dataset import Options, draw, rows
from bigdiff.quickstart.faults import AWKWARD, FAULTY, fewer
from bigdiff.quickstart.server import serve

SMALL = Options(count=50, size=32, awkward=fewer(AWKWARD, 2), faulty=fewer(FAULTY, 1))
LIMITS = Download(
    timeout_seconds=1.0,
    deadline_seconds=2.0,
    allow_private_addresses=True,
    max_bytes=1_000_000,
    rows_per_file=40,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("dataset")
    draw(folder, SMALL, processes=1)
    with serve(folder, 0) as port:
        yield folder, port


def run(part: Path, parent: int) -> "subprocess.Popen[bytes]":
    arguments = part / "arguments.json"
    arguments.write_text(json.dumps({"folder": str(part), "parent": parent, "limits": asdict(LIMITS)}))
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    return subprocess.Popen([sys.executable, "-m", "bigdiff.prep.img2dataset_part", str(arguments)], env=environment)


def facts(folder: Path) -> dict[str, tuple[str, str | None]]:
    tables = [pq.read_table(file).to_pylist() for file in sorted(folder.glob("[0-9]*.parquet"))]
    return {row["url"]: (row["status"], row["error_message"]) for table in tables for row in table}


def test_a_part_is_fetched_its_passing_failures_again_and_a_half_written_file_anew(
    dataset: tuple[Path, int], tmp_path: Path
) -> None:
    folder, port = dataset
    content = (folder / "source" / "pictures.bin").read_bytes()
    places = {row["path"]: row for row in pq.read_table(folder / "source" / "index.parquet").to_pylist()}
    kinds = {f"http://127.0.0.1:{port}{row.path}": row for row in rows(SMALL) if row.path in places}
    first, second = tmp_path / "part" / "first", tmp_path / "part" / "second"
    first.mkdir(parents=True)
    pq.write_table(pa.table({"row": list(range(len(kinds))), "url": list(kinds)}), first / ROWS)
    # What a kill leaves: a tar cut short, and statistics cut short, which would count as finished.
    (first / "00001.tar").write_bytes(b"cut short")
    (first / "00001_stats.json").write_text('{"count": ')
    assert run(tmp_path / "part", os.getpid()).wait(120) == 0
    assert (tmp_path / "part" / DONE).exists()

    outcome, again = facts(first), facts(second)
    assert set(outcome) == set(kinds)
    for url, (status, cause) in outcome.items():
        kind = next((each for each in FAULTY if each.name == kinds[url].kind and each.step == "download"), None)
        if kinds[url].kind == "throttled":
            assert (status, cause) == ("failed_to_download", "HTTP 429")
            assert again[url] == ("success", None)
        elif kind is None:
            assert (status, cause) == ("success", None), kinds[url].kind
        else:
            assert (status, cause) == ("failed_to_download", kind.cause), kinds[url].kind
    assert {kinds[url].kind for url in again} == {"throttled", "unavailable", "hanging", "dripping"}

    table = pq.read_table(first / "00001.parquet").to_pylist()
    tar, stored = (first / "00001.tar").read_bytes(), index.places(first / "00001.tar")
    for row in table:
        if row["status"] == "success":
            offset, length = stored[row["key"]]["jpg"]
            place = places[kinds[row["url"]].path]
            assert tar[offset : offset + length] == content[place["offset"] : place["offset"] + place["length"]]

    before = (first / "00000.tar").stat().st_mtime_ns
    (tmp_path / "part" / DONE).unlink()
    assert run(tmp_path / "part", os.getpid()).wait(120) == 0
    assert (first / "00000.tar").stat().st_mtime_ns == before


NAMES = ("00000.tar", "00000.parquet", "00000_stats.json")


def written(folder: Path, content: str, names: tuple[str, ...] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps(content))


def read(folder: Path) -> list[str]:
    return [json.loads((folder / name).read_text()) for name in NAMES]


def test_what_is_published_is_moved_whole_wherever_a_move_was_killed(tmp_path: Path) -> None:
    for moved in range(4):
        folder = tmp_path / str(moved)
        written(folder, "killed", NAMES[:2])  # what a process that was killed had begun
        written(folder / PUBLISHED / "00000", "published", NAMES[moved:])
        written(folder, "published", NAMES[:moved])
        assert _settled(folder, {0, 1}) == {0}  # nobody has published 1
        assert read(folder) == ["published"] * 3
        written(folder / PUBLISHED / "00000", "again")  # by a task that was taken for lost
        assert _settled(folder, {0, 1}) == {0}
        assert read(folder) == ["published"] * 3


def test_a_file_that_is_not_there_is_not_taken_for_one_without_failures(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [0, 1], "url": ["a", "b"]}), tmp_path / ROWS)
    facts = {"row": [0], "url": ["a"], "status": ["failed_to_download"], "error_message": ["HTTP 503"]}
    pq.write_table(pa.table(facts), tmp_path / "00000.parquet")
    with pytest.raises(FileNotFoundError, match=r"00001\.parquet"):
        write_failed(tmp_path, tmp_path / "failed.parquet", Download(rows_per_file=1))
    write_failed(tmp_path, tmp_path / "failed.parquet", Download(rows_per_file=2))
    assert pq.read_table(tmp_path / "failed.parquet").to_pylist() == [{"row": 0, "url": "a"}]
