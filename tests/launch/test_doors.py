"""The commands as a user types them, on a machine without Slurm."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.config.load import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
DOORS = sorted([*(ROOT / "launch").glob("*.py"), *(ROOT / "data_prep").glob("*.py")])
HEAVY = ("torch", "diffusers", "transformers", "deepspeed", "pyarrow", "duckdb")


def call(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": str(path)} if path else {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("door", DOORS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_is_quick_and_complete(door: Path) -> None:
    done = call("-X", "importtime", door, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & set(HEAVY)  # seconds each; --help and a misspelt key answer at once


def test_a_dry_run_needs_no_slurm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = call("launch/slurm.py", "--stage", "512px", "--dry-run", f"runs={runs}", path=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for part in (
        "name: 512px\n",
        "859,520,964",
        "global batch: 2048 = 32 nodes x 8 processes x 4 samples x 2 accumulation",
        "steps:        194,000",
        f"run folder:   {runs}/512px",
        "#!/bin/bash\n",
        "#SBATCH --account=my-account\n",
        "#SBATCH --partition=gpu\n",
        "#SBATCH --nodes=32\n",
        "#SBATCH --gpus-per-node=8\n",
        "#SBATCH --time=1440\n",
        "#SBATCH --signal=USR2@300\n",
        "#SBATCH --requeue\n",
        "--kill-on-bad-exit=1",
    ):
        assert part in done.stdout
    assert not list(tmp_path.iterdir())


def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a door prints, run in this process: torch, which a dry run needs, is imported once for all of them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(arguments))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(arguments[0], run_name="__main__")
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_a_recipe_shows_every_stage_and_its_dependency(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = here(capsys, monkeypatch, "launch/slurm.py", "--recipe", "sd-v1.5", "--dry-run", "--nodes", "16")
    dependencies = [line.partition("dependency=")[2] for line in output.splitlines() if "--dependency" in line]
    assert dependencies == [
        "singleton",
        "'afterok:<id of 256px>,singleton'",
        "'afterok:<id of 512px>,singleton'",
        "'afterok:<id of 512px-aesthetics>,singleton'",
    ]
    assert output.count("#SBATCH --kill-on-invalid-dep=yes") == 4
    assert output.count("#SBATCH --nodes=16") == 4


def test_the_profile_of_a_recipe_has_names_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--recipe", "sd-v1.5", "--profile", "as-run", "--dry-run")
    output = here(capsys, monkeypatch, "launch/slurm.py", *arguments)
    names = [line.removeprefix("name: ") for line in output.splitlines() if line.startswith("name: ")]
    assert names == ["256px-as-run", "512px-as-run", "512px-aesthetics-as-run", "512px-cfg-as-run"]
    assert "afterok:<id of 512px-aesthetics-as-run>" in output


def test_a_plan_shows_the_graph_and_its_fidelity_in_a_pipe_without_a_line_too_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    order = here(capsys, monkeypatch, "launch/plan.py", "--recipe", "sd-v1")
    rows = [line.split("  ")[0] for line in order.splitlines() if line[:3] in ("256", "512")]
    assert rows == ["256px", "512px", "512px-aesthetics", "512px-cfg-v1-3", "512px-cfg-v1-4", "512px-cfg"]
    report = here(capsys, monkeypatch, "launch/plan.py", "--recipe", "sd-v1.5", "--fidelity")
    assert max(map(len, report.splitlines())) <= 100
    assert "0 differ" in report
    changed = here(capsys, monkeypatch, "launch/plan.py", "--recipe", "sd-v1.5", "--fidelity", "text_dropout=0.2")
    assert "DIFFERS  512px-cfg: captions dropped (text_dropout) is 0.2, published 0.1 (card, certain)" in changed
    assert "4 differ" in changed


def test_the_status_of_a_recipe_has_a_line_for_each_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "quickstart-32px" / "logs"
    logs.mkdir(parents=True)
    (logs.parent / "metrics.jsonl").write_text('{"step": 350, "speed/images_per_second": 249.5}\n')
    crash = {"time": 1.0, "job": "x", "nodes": "n1", "status": 137, "step": 0, "kind": "passing", "why": "[killed]"}
    (logs / "crashes.json").write_text(f"[{json.dumps(crash)}]")
    shown = here(capsys, monkeypatch, "launch/status.py", "--recipe", "quickstart", f"runs={tmp_path}").splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in shown[1:-1]}
    assert list(rows)[-4:] == ["quickstart-32px", "judge-32px", "quickstart-64px", "judge-64px"]
    assert rows["quickstart-32px"] == ["failed", "350", "of", "500", "249.5"]
    assert rows["quickstart-64px"] == ["not", "started", "0", "of", "700"]
    assert rows["judge-64px"] == ["not", "started"]
    assert shown[-1] == "quickstart-32px crashed last: [killed]"


def test_a_local_dry_run_names_its_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ("--stage", "512px", "--dry-run", "--processes", "4", f"runs={tmp_path / 'runs'}")
    output = here(capsys, monkeypatch, "launch/local.py", *arguments)
    assert "global batch: 2048 = 1 nodes x 4 processes x 4 samples x 128 accumulation" in output
    assert "4 processes on the CPU, each: DS_ACCELERATOR=cpu " in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["launch/slurm.py", "--stage", "512px", "--dry-run", "optim.lrr=1"], "optim.lrr"),
        (["launch/slurm.py", "--stage", "513px", "--dry-run"], "unknown stage '513px'"),
        (["launch/slurm.py", "--stage", "512px", "--dry-run", "--cluster", "x"], "unknown cluster 'x'"),
        (["launch/slurm.py", "--stage", "512px", "--dry-run", "--nodes", "3"], "does not divide over 24 processes"),
        (["launch/slurm.py", "--recipe", "x", "--dry-run"], "unknown recipe 'x'"),
        (["launch/slurm.py", "--stage", "512px", "--profile", "x", "--dry-run"], "no profile 'x': it has card, as-run"),
        (["launch/slurm.py", "--stage", "512px"], "256px has no checkpoint; train that stage first"),
        (["launch/local.py", "--stage", "512px"], "256px has no checkpoint; train that stage first"),
        (["launch/plan.py", "--recipe", "quickstart", "--fidelity"], "set `facts` of the recipe to sd-v1"),
        (
            ["launch/plan.py", "--stage", "256px", "--device", "h100", "engine.gradient_checkpointing=down_blocks.9"],
            "engine.gradient_checkpointing=down_blocks.9: the UNet has no unit down_blocks.9",
        ),
        (["launch/slurm.py", "--stage", "256px", "--cluster", "local"], "launch/local.py"),
        (["launch/local.py", "--stage", "512px", "--processes", "3"], "does not divide over 3 processes"),
        (["launch/local.py", "--stage", "512px", "steps"], "not of the form key=value"),
    ],
)
def test_unusable_arguments_get_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = call(*arguments, f"runs={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert sentence in done.stderr
    assert done.stdout == ""


def test_without_slurm_submitting_says_what_to_do(tmp_path: Path) -> None:
    done = call("launch/slurm.py", "--stage", "256px", f"runs={tmp_path / 'runs'}", path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: sbatch not found")


def test_checkpoints_that_no_disk_has_room_for_are_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    for name, body in {"sbatch": 'echo "$*" >> "$0.asked"', "sinfo": "", "squeue": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o700)
    huge = ["checkpoint.every=1", "checkpoint.keep=1000000"]  # petabytes
    far = ["data.latents=s3://bucket/set", "data.cache=/scratch", "data.cache_gb=1"]
    given = ["launch/slurm.py", "--stage", "256px", f"runs={tmp_path / 'runs'}", *huge, *far]
    done = call(*given, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "the checkpoints of 256px need" in done.stderr and "lower checkpoint.keep" in done.stderr
    assert (tmp_path / "sbatch.asked").read_text().count("\n") == 1, "whether SLURM would take it, no more"
    assert not (tmp_path / "runs").exists()


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    done = tmp_path / "512px" / "checkpoints" / "step-00194000"
    done.mkdir(parents=True)
    (done / "index.json").write_text("{}")
    for door in ("launch/local.py", "launch/slurm.py"):
        said = call(door, "--stage", "512px", f"runs={tmp_path}")
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith("512px is finished")
    assert [path.name for path in (tmp_path / "512px").iterdir()] == ["checkpoints"]


def test_the_shipped_clusters_are_documented_where_they_must_be_changed() -> None:
    for name in ("example", "sd-v1-card"):
        assert "# change" in (CONFIGS / "cluster" / f"{name}.yaml").read_text()


def test_a_plan_tells_time_memory_and_money_for_each_number_of_nodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--stage", "256px", "--device", "h200", "--nodes", "1,32", "--price", "3", "batch.micro=64"]
    options += ["--samples", "1000000", "--picture-kb", "60"]
    output = here(capsys, monkeypatch, "launch/plan.py", *options)
    for part in (
        "859,520,964 trained parameters",
        "180.1 forward",
        "ZeRO-2",
        "32 nodes",
        "masters",
        "money ~",
        "H200",
        "encoding all ~",
    ):
        assert part in output
    done = call("launch/plan.py", "--stage", "256px")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "add --device NAME" in done.stderr
