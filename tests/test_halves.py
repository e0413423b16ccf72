"""Two pytests beside each other, as `make test` runs them: their output, their status, their end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from halves import ALONE, ROOT, halves

PROGRAM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import halves
pytest = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--disable-plugin-autoload"]
commands = {file: [*pytest, "-rf", file] for file in sys.argv[3:]}
sys.exit(halves.decided(commands, pathlib.Path(sys.argv[2])))
"""
TESTS = {
    "passing": "def test_it(): print('quiet')",
    "failing": "def test_it():\n    print('loud')\n    assert 1 == 2",
    "unsteady": """
import pathlib
def test_once():
    before = pathlib.Path(__file__ + ".before")
    if not before.exists():
        before.touch()
        assert before is None
def test_other(): pass
""",
    "waiting": """
import pathlib, subprocess, time, pytest
here = pathlib.Path(__file__)
@pytest.fixture
def daemon():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    here.with_suffix(".pid").write_text(str(process.pid))
    yield
    process.kill()
    process.wait()
def test_it(daemon): time.sleep(600)
""",
}


def start(folder: Path, *kinds: str) -> subprocess.Popen[str]:
    files = [folder / f"test_{number}_{kind}.py" for number, kind in enumerate(kinds)]
    for file, kind in zip(files, kinds, strict=True):
        file.write_text(TESTS[kind])
    words = [sys.executable, "-c", PROGRAM, str(ROOT / "tests" / "parts"), str(folder / "caches"), *map(str, files)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.mark.parametrize("kinds", [("passing", "failing"), ("failing", "passing")])
def test_each_report_is_whole_and_each_status_counts(tmp_path: Path, kinds: tuple[str, str]) -> None:
    process = start(tmp_path, *kinds)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    for number, kind in enumerate(kinds):
        file = tmp_path / f"test_{number}_{kind}.py"
        report, said, _ = output.partition(f"\n{file}: exit status {int(kind == 'failing')}, ")
        assert said and report.splitlines()[-1].strip("= ").startswith("1 failed" if kind == "failing" else "1 passed")
    failures, _, summary = output.partition("= FAILURES =")[2].partition("short test summary")
    assert "assert 1 == 2" in failures and "loud" in failures and "exit status" not in failures
    assert summary and "quiet" not in output
    # at the very end, what a machine keeps that keeps the end alone
    assert "_failing.py::test_it" in output.rpartition("_failing.py, once more:\nFAILED ")[2].splitlines()[0]


def test_what_failed_beside_others_is_decided_alone(tmp_path: Path) -> None:
    process = start(tmp_path, "unsteady", "passing", "unsteady")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.count("1 failed, 1 passed") == 2 and output.count("1 passed, 1 deselected") == 2
    assert output.count("passed alone, failed beside others: ") == 2 and output.rstrip().endswith("::test_once")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_end_with_what_they_started(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "waiting", "waiting")
    try:
        files = [tmp_path / f"test_{half}_waiting.pid" for half in range(2)]
        deadline = time.monotonic() + 60
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        daemons = [int(file.read_text()) for file in files]
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2 and output.count("exit status 2, ") == output.count("! KeyboardInterrupt !") == 2
    assert not [daemon for daemon in daemons if Path(f"/proc/{daemon}").exists()]


def test_each_test_is_in_one_half() -> None:
    jobs, others = halves().values()
    assert [f"--ignore={file}" for file in jobs] == others and not ALONE & {*jobs}
    assert {*jobs} | ALONE == {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").glob("*/test_*.py")
        if file.parent.name in ("cluster", "e2e")
    }
