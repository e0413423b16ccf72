import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.cluster.follow import follow
from bigdiff.cluster.machine import Machine, fit
from bigdiff.cluster.submit import start
from bigdiff.cluster.task import ROOT, TaskJob, command, done, folder, run
from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.config.load import load_cluster
from bigdiff.config.recipe import Task


def task(makes: Path, *words: str) -> Task:
    return Task(name="one", run=("-c", *words), makes=str(makes))


def test_a_set_or_a_file_is_what_tells_that_it_is_done(tmp_path: Path) -> None:
    made = task(tmp_path / "made")
    assert not done(made)
    (tmp_path / "made").mkdir()
    assert not done(made)
    (tmp_path / "made" / "manifest.json").touch()
    assert done(made)
    (tmp_path / "file").touch()
    assert done(task(tmp_path / "file"))


def test_doors_are_found_from_any_folder() -> None:
    assert command(["launch/export.py", "--x"]) == [sys.executable, str(ROOT / "launch/export.py"), "--x"]
    assert command(["-m", "m"]) == [sys.executable, "-m", "m"]
    assert (ROOT / "launch" / "export.py").is_file()
    assert folder("runs", "r", Task(name="a", run=("x",), makes="y")) == Path("runs/jobs/r/a")


def test_the_last_line_of_standard_error_is_the_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print('out'); sys.stderr.write('50%\\r100%\\n' + 'x' * 5000 + '\\n')\n"
    script += "sys.stderr.write('error: no such thing\\n'); sys.exit(2)"
    assert run([sys.executable, "-c", script]) == (2, "no such thing")
    told = capfd.readouterr()
    assert told.out == "out\n" and told.err.endswith("x\nerror: no such thing\n") and len(told.err) > 5000
    assert run([sys.executable, "-c", ""]) == (0, "")


def test_slurms_warning_does_not_end_the_command() -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('lives')"
    assert run([sys.executable, "-c", script]) == (0, "")


def test_a_command_that_is_gone_takes_no_handler_with_it() -> None:
    script = "import signal; from bigdiff.cluster.task import run; import sys\n"
    script += "signal.signal(signal.SIGUSR2, lambda *_: print('heard'))\n"
    script += "run([sys.executable, '-c', '']); import os; os.kill(os.getpid(), signal.SIGUSR2)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "heard\n"


def ended(tmp_path: Path, body: str) -> object:
    """What becomes of a job whose command is `body`."""
    here = Machine(cores=1)
    cluster = fit(load_cluster("local"), here, processes=1)
    job = TaskJob(task=task(tmp_path / "made", body))
    return follow(start(job, tmp_path, cluster, here), lambda line: None)


def test_a_task_ends_as_its_command_does(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no such row$"):
        ended(tmp_path, "import sys; sys.exit(sys.stderr.write('error: no such row\\n') and 2)")
    with pytest.raises(RunError, match=r"^task one ended with status 1: a server is away$"):
        ended(tmp_path, "import sys; sys.exit(sys.stderr.write('failed: a server is away\\n') and 1)")
    with pytest.raises(LastingError, match=r"ended without .*made, which its recipe says it makes"):
        ended(tmp_path, "pass")
    assert ended(tmp_path, f"open({str(tmp_path / 'made')!r}, 'w')") == [None]
