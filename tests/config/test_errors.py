import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.config.errors import LastingError, NodeError, RunError, UsageError, door

ROOT = Path(__file__).resolve().parents[2]


def ending(error: BaseException | None) -> int:
    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        door(main)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_success_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None) == 0
    assert capsys.readouterr().err == ""


def test_unusable_input_exits_2_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(UsageError("a.parquet has no column URL")) == 2
    assert capsys.readouterr().err == "error: a.parquet has no column URL\n"


def test_a_failure_while_running_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(RunError("the disk is full")) == 1
    assert capsys.readouterr().err == "failed: the disk is full\n"
    assert ending(LastingError("the set is damaged")) == 1


def test_a_defect_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        door(main)


def test_ctrl_c_exits_130() -> None:
    script = (
        "import time; from bigdiff.config.errors import NodeError, door\n"
        "def main():\n    print(1, flush=True)\n    time.sleep(60)\ndoor(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted; the same command again continues\n"


def test_the_nodes_of_a_sentence() -> None:
    error = NodeError.of({"gpu07": "rank 3 fails on H200: x", "gpu09": "it is slow"})
    assert str(error) == "node gpu07: rank 3 fails on H200: x; node gpu09: it is slow"
    assert error.nodes == ("gpu07", "gpu09") == NodeError(str(error)).nodes
