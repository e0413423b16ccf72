import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Download
from bigdiff.prep.download import MARK, download, end_leftovers
from bigdiff.prep.layout import Layout
from bigdiff.runtime.files import write_json
from bigdiff.runtime.workers import Workers

HERE = Workers(1)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="leftovers are found through /proc")


def sleeper(work: Path | str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, MARK: str(work)},
        start_new_session=True,
    )


def selected(layout: Layout, urls: list[str]) -> None:
    layout.work.mkdir(parents=True)
    pq.write_table(pa.table({"row": list(range(len(urls))), "url": urls}), layout.selected)


def marked(work: Path) -> list[int]:
    wanted = f"{MARK}={work.resolve()}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_only_processes_of_this_folder_are_ended(tmp_path: Path) -> None:
    part = tmp_path.resolve() / "00000"
    ours, others = sleeper(part), sleeper(tmp_path.resolve() / "000001")
    _until(lambda: ours.pid in marked(part))
    end_leftovers(part)
    assert ours.wait(10) == -signal.SIGKILL
    assert others.poll() is None
    end_leftovers(tmp_path)  # all parts below it
    assert others.wait(10) == -signal.SIGKILL


def test_a_part_that_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    layout = Layout(tmp_path / "set")
    selected(layout, [f"http://127.0.0.1:{silent.getsockname()[1]}/{number}" for number in range(4)])
    limits = Download(
        allow_private_addresses=True,
        timeout_seconds=50,
        deadline_seconds=60,
        part_deadline_seconds=1.0,
        rows_per_file=2,
    )
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"part 00000 was not fetched in download\.part_deadline_seconds=1"):
        download(layout, limits, HERE, print)
    assert time.monotonic() - begin < 15
    assert marked(layout.part(0)) == []
    silent.close()


def test_finished_parts_are_not_fetched_and_rows_are_dealt_in_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")
    selected(layout, [f"http://127.0.0.1:9/{number}" for number in range(25)])
    for number in range(3):
        write_json(layout.part(number) / "done.json", {})
    said: list[str] = []
    download(layout, Download(rows_per_part=10), HERE, said.append)  # no server: anything that was fetched would fail
    assert said == []
    parts = [pq.read_table(layout.part(number) / "first" / "rows.parquet") for number in range(3)]
    assert [part["row"].to_pylist() for part in parts] == [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    assert parts[2]["url"].to_pylist()[0] == "http://127.0.0.1:9/20"


def test_a_failing_process_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")
    selected(layout, ["http://127.0.0.1:9/0"])
    (layout.part(0) / "first").mkdir(parents=True)
    (layout.part(0) / "first" / "rows.parquet").write_bytes(b"not parquet")
    with pytest.raises(RunError, match=r"downloading part 00000 ended with code 1: .*magic bytes.*log\.txt"):
        download(layout, Download(rows_per_part=10), HERE, print)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
