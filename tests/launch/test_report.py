"""The door of the report, as a user types it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bigdiff.config.load import dump, load_stage

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "launch/report.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_it_writes_the_page_prints_where_and_never_imports_torch(tmp_path: Path) -> None:
    stage = replace(load_stage("quickstart-64px"), runs=str(tmp_path))
    (tmp_path / "config.yaml").write_text(dump(stage))
    done = call("--run", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "diffusers", "transformers", "deepspeed", "pyarrow", "duckdb"}


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path: Path) -> None:
    done = call("--run", str(tmp_path))
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout, len(said)) == (2, "", 1)
    assert said[0].startswith(f"error: --run {tmp_path} holds no config.yaml")
