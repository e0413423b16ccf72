import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.runtime.files import TEMPORARY, remove_leftovers, replacing, sha256, sync, write_bytes, write_json

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b" / "file"
    write_bytes(final, b"content")
    assert final.read_bytes() == b"content"
    assert [path.name for path in final.parent.iterdir()] == ["file"]


def test_until_the_end_the_old_content_stands(tmp_path: Path) -> None:
    final = tmp_path / "file"
    write_bytes(final, b"old")
    with replacing(final) as temporary:
        temporary.write_bytes(b"new")
        assert final.read_bytes() == b"old"
    assert final.read_bytes() == b"new"


def test_after_an_error_everything_is_as_before(tmp_path: Path) -> None:
    final = tmp_path / "file"
    write_bytes(final, b"old")
    with pytest.raises(ZeroDivisionError), replacing(final) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_killed_writer_leaves_only_what_the_next_start_removes(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from bigdiff.runtime.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "file"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.endswith(TEMPORARY)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_name_end_with_one_whole_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from bigdiff.runtime.files import write_bytes\n"
        "for _ in range(100): write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, tmp_path / "file", letter], cwd=ROOT) for letter in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert (tmp_path / "file").read_bytes() in (b"a" * 5000, b"b" * 5000)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_json_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [1, 2]})
    write_json(tmp_path / "b", {"y": [1, 2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"x": 1, "y": [1, 2]}


def test_the_checksum_is_the_contents(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    write_bytes(tmp_path / "file", content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    sync(tmp_path)


def test_leftovers_are_removed_from_one_folder_only(tmp_path: Path) -> None:
    kept = [tmp_path / "file", tmp_path / "below" / f"x{TEMPORARY}"]
    kept[1].parent.mkdir()
    for path in [*kept, tmp_path / f"file.123{TEMPORARY}"]:
        path.touch()
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in kept)
    assert not (tmp_path / f"file.123{TEMPORARY}").exists()
