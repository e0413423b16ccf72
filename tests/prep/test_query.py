import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

from bigdiff.config.errors import RunError
from bigdiff.prep.query import database, run

LONG = "SELECT count(*) FROM range(100000) a(i), range(1000000) b(j) WHERE hash(i + j) = 0"
BIG = "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY md5(v)) AS n, v FROM ({})) WHERE v <> ''"
ROWS = "SELECT repeat('x', 300) || i AS v FROM range(400000) t(i)"  # 130 MB


def test_rows_and_errors_of_a_query(tmp_path: Path) -> None:
    with database(tmp_path / "duckdb", None) as base:
        assert run(base, "SELECT i FROM range(3) t(i)", "counting") == [(0,), (1,), (2,)]
        with pytest.raises(duckdb.Error, match="nowhere"):
            run(base, "SELECT * FROM nowhere", "counting")
        assert run(base, "SELECT 1", "counting") == [(1,)]
    assert not (tmp_path / "duckdb").exists()


def test_ctrl_c_ends_a_query_at_once(tmp_path: Path) -> None:
    with database(tmp_path / "duckdb", None) as base:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(base, LONG, "counting")
        assert time.monotonic() - began < 5
        assert run(base, "SELECT 1", "counting") == [(1,)]


def test_what_exceeds_the_memory_goes_to_the_folder_and_nothing_is_left_there(tmp_path: Path) -> None:
    folder = tmp_path / "duckdb"
    folder.mkdir()
    (folder / "duckdb_temp_storage_DEFAULT-0.tmp").write_bytes(b"of a killed process")
    spilled = 0
    with database(folder, 0.1) as base:
        assert not folder.exists() or not any(folder.iterdir())
        base.execute("SET threads = 1")  # each thread has buffers of its own
        with ThreadPoolExecutor(1) as thread:
            sorting = thread.submit(run, base, BIG.format(ROWS), "sorting")
            while not sorting.done():
                with suppress(FileNotFoundError):  # deleted while we looked
                    spilled = max(spilled, sum(path.stat().st_size for path in folder.glob("*")))
                time.sleep(0.01)
        assert sorting.result() == [(400_000,)]
    assert spilled > 1e7
    assert not folder.exists()


def test_too_little_memory_is_said_with_the_setting(tmp_path: Path) -> None:
    with database(tmp_path / "duckdb", 0.002) as base, pytest.raises(RunError, match=r"sorting.*select\.memory_gb"):
        run(base, BIG.format(ROWS), "sorting")


def test_without_a_folder_nothing_is_left_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with database(None, 0.1) as base:
        (folder,) = base.execute("SELECT current_setting('temp_directory')").fetchall()[0]
        base.execute("SET threads = 1")
        assert run(base, BIG.format(ROWS), "sorting") == [(400_000,)]
        assert not any(tmp_path.iterdir())
    assert not Path(folder).exists()


def test_a_long_query_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with database(tmp_path / "duckdb", None) as base:
        threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run(base, LONG, "counting rows")
    shown = capsys.readouterr()
    assert "counting rows" in shown.err
    assert not shown.out
