import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bigdiff.checkpoint import layout

if TYPE_CHECKING:
    from conftest import Forker

BEGIN = """
from bigdiff.checkpoint import probe
from bigdiff.config.errors import UsageError
world = enter(60)
run = Path(sys.argv[min(world.rank, len(sys.argv) - 2) + 1])
try:
    say(mark=probe.begin(run, world))
except UsageError as error:
    say(error=str(error))
"""


def test_all_agree_on_a_new_mark_and_nothing_stays(forker: "Forker", tmp_path: Path) -> None:
    run = tmp_path / "runs" / "toy"
    leftover = layout.aside(layout.checkpoint(run, 3), layout.WRITING, "ab12-1")
    leftover.mkdir(parents=True)
    marks = set()
    for _ in range(2):
        told = {lines[0]["mark"] for lines in forker.run(BEGIN, 3, run)}
        assert len(told) == 1
        marks |= told
    assert len(marks) == 2 and all(re.fullmatch("[0-9a-f]{16}", mark) for mark in marks)
    assert list(layout.checkpoints(run).iterdir()) == []


def errors(forker: "Forker", *runs: Path) -> str:
    first, second = (lines[0]["error"] for lines in forker.run(BEGIN, 2, *runs))
    assert first == second.replace(str(runs[-1]), str(runs[0]))
    return str(first)


def test_a_folder_that_cannot_be_written_is_said_on_all_ranks(forker: "Forker", tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("a file")
    said = errors(forker, tmp_path / "toy")
    assert re.search(r"rank 0 cannot save to .*toy/checkpoints: Not a directory on .*; make room", said)


def test_a_read_only_disk_is_said_on_all_ranks(forker: "Forker", mounted: Callable[..., Path]) -> None:
    disk = mounted("size=1m")
    layout.checkpoints(disk / "toy").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said = errors(forker, disk / "toy")
    assert re.search(r"rank 0 cannot save to .*/checkpoints: Read-only file system on .* `runs` to a folder", said)


def test_a_folder_that_is_not_shared_is_said_on_all_ranks(forker: "Forker", tmp_path: Path) -> None:
    said = errors(forker, tmp_path / "here", tmp_path / "there")
    assert re.search(r"rank 1 cannot save to .*: .* does not see what rank 0 wrote; `runs` must be a folder that", said)
