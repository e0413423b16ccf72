import subprocess
import sys
from pathlib import Path

import pytest


def part(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigdiff.quickstart.part", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["judge", "--run", "runs/other", "--size", "32"], "--run runs/other must end in quickstart-32px"),
        (["judge", "--run", "runs/quickstart-64px", "--size", "32"], "must end in quickstart-32px"),
        (["judge", "--run", "runs/quickstart-32px", "--size", "33"], "invalid choice: 33"),
        (["judge", "--run", "runs/quickstart-32px", "--size", "32", "--step", "-1"], "--step -1 must not be negative"),
        (["images", "--scenes", "0"], "error: --scenes 0: there must be 1 or more"),
        ([], "required: part"),
    ],
)
def test_what_it_cannot_do_is_a_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    """What it does is seen in tests/cluster/test_recipe_on_slurm.py."""
    done = part(tmp_path, *words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
