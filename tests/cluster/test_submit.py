import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import submitit

from bigdiff.cluster import submit
from bigdiff.cluster.follow import follow
from bigdiff.cluster.machine import Machine, fit
from bigdiff.config.cluster import Cluster, Preflight
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Stage

CARD = load_cluster("sd-v1-card")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return load_stage("512px", [f"runs={tmp_path / 'runs'}"])


def script(stage: Stage, cluster: Cluster) -> str:
    return submit.script(submit.of_stage(stage, cluster), cluster)


def flags(script: str) -> dict[str, str]:
    return {key: value for key, _, value in re.findall(r"^#SBATCH --([a-z-]+)(=(.*))?$", script, re.MULTILINE)}


def test_the_script_says_all_that_slurm_must_know(stage: Stage) -> None:
    cluster = replace(
        CARD, qos="high", constraint="a100", exclude="gpu[03,17]", memory_gb=900, setup=("module load cuda",)
    )
    lines = flags(script(stage, cluster))
    assert {key: lines[key] for key in ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task")} == {
        "nodes": "32",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
    }
    assert (lines["account"], lines["partition"], lines["qos"]) == ("my-account", "gpu", "high")
    assert (lines["constraint"], lines["exclude"], lines["mem"]) == ("a100", "'gpu[03,17]'", "900GB")
    assert (lines["time"], lines["signal"], lines["requeue"]) == ("1440", "USR2@300", "")
    assert lines["dependency"] == "singleton"
    assert lines["open-mode"] == "append"


def test_the_script_runs_setup_then_variables_then_srun(stage: Stage) -> None:
    cluster = replace(
        CARD,
        setup=("module load cuda",),
        environment=("NCCL_IB_HCA=mlx5", "NOTE=a b; rm -rf $HOME"),
        srun_args=("--container-image=a b.sqsh",),
    )
    text = script(stage, cluster)
    order = [
        'echo "== start ${SLURM_RESTART_COUNT:-0} of job',
        "module load cuda",
        "export PATH=",
        "export NCCL_IB_HCA=mlx5",
        "export NOTE='a b; rm -rf $HOME'",
        "\nsrun ",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    srun = text[text.index("\nsrun ") :]
    assert f"{sys.executable} -m bigdiff.cluster.again {Path(stage.runs).absolute()}/512px/logs/" in srun
    assert "-%j --limit=3 --status=" in srun
    assert "--kill-on-bad-exit=1" in srun
    assert "'--container-image=a b.sqsh'" in srun
    assert "--cpus-per-task=12" in srun  # not inherited from sbatch since Slurm 22.05
    assert f"{sys.executable} -u -m submitit.core._submit {Path(stage.runs).absolute()}/512px/logs/" in srun
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("status", [0, 1, 137])
def test_the_scripts_status_is_that_of_its_last_word(stage: Stage, tmp_path: Path, status: int) -> None:
    """With a cluster's own `set -eu -o pipefail`, an srun that fails, and another program than ours for a Python."""
    text = script(stage, replace(CARD, setup=("set -eu -o pipefail",)))
    text = text.replace(sys.executable, str(tmp_path / "python"))
    for name, body in {"srun": f"exit {status}", "python": f'echo "$@" >> {tmp_path}/said; exit 7'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o700)
    lines = text.replace("export PATH=", f"export PATH={tmp_path}:")
    done = subprocess.run(["bash"], input=lines, text=True, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (7 if status else 0, "")
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    assert re.fullmatch(rf"-m bigdiff\.cluster\.again /\S+-%j --limit=3 --status={status}\n" if status else "", said)


def test_what_is_left_empty_is_left_to_the_cluster(stage: Stage) -> None:
    lines = flags(script(stage, replace(CARD, partition="", account="", memory_gb=0)))
    assert not {"partition", "account", "mem", "qos", "constraint", "exclude", "wckey"} & set(lines)


def test_a_cpu_cluster_asks_for_no_gpus_and_sets_the_threads(stage: Stage) -> None:
    text = script(stage, replace(CARD, gpus_per_node=0))
    assert "gpus-per-node" not in text
    assert "export DS_ACCELERATOR=cpu\nexport OMP_NUM_THREADS=12\n" in text
    own = submit.environment(replace(CARD, gpus_per_node=0, environment=("OMP_NUM_THREADS=1",)))
    assert own["OMP_NUM_THREADS"] == "1"
    assert submit.environment(CARD) == {}


def test_a_job_waits_for_the_one_before_and_goes_if_that_fails(stage: Stage) -> None:
    lines = flags(submit.script(submit.of_stage(stage, CARD), CARD, after=["17", "18"]))
    assert lines["dependency"] == "afterok:17:18,singleton"
    assert lines["kill-on-invalid-dep"] == "yes"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nodes": 0}, "nodes=0 must be positive"),
        ({"gpus_per_node": 4}, "one process per GPU"),
        ({"max_crashes": 0}, "max_crashes=0 must be positive"),
        ({"preflight": Preflight(slow=1.0)}, "preflight.slow=1.0 must be from 0 to below 1"),
        ({"nodes": 3}, "does not divide over 24 processes"),
        ({"signal_seconds": 86400}, "signal_seconds=86400 is not before the end"),
        ({"environment": ("NCCL IB=1",)}, "not of the form KEY=VALUE"),
        ({"environment": ("NCCL_IB",)}, "not of the form KEY=VALUE"),
        ({"kind": "local"}, r"launch/local\.py"),
    ],
)
def test_a_cluster_that_cannot_work_is_refused(stage: Stage, change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        script(stage, replace(CARD, **change))  # type: ignore[arg-type]


def test_without_slurm_submission_is_a_sentence(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch not found"):
        submit.slurm(submit.of_stage(stage, CARD), CARD)


def test_what_is_submitted_is_the_script_of_the_dry_run(
    stage: Stage, put_program: Callable[[str, str], None], tmp_path: Path
) -> None:
    put_program("sbatch", f'cp "$1" {tmp_path}/got; echo "Submitted batch job 4711"')
    assert submit.slurm(submit.of_stage(stage, CARD), CARD) == "4711"
    stamp = re.compile(r"\d{8}-\d{6}-%j")
    assert stamp.sub("", (tmp_path / "got").read_text()) == stamp.sub("", script(stage, CARD))
    folder = next((Path(stage.runs) / stage.name / "logs").glob("*-4711"))
    job = submitit.helpers.DelayedSubmission.load(folder / "4711_submitted.pkl").function
    assert job == submit.TrainJob(stage=stage, cluster=CARD)


def test_sbatchs_own_words_reach_the_user(stage: Stage, put_program: Callable[[str, str], None]) -> None:
    put_program("sbatch", 'echo "Batch job submission failed: Invalid account" >&2; exit 1')
    with pytest.raises(RunError, match="Invalid account"):
        submit.slurm(submit.of_stage(stage, CARD), CARD)


def test_local_processes_get_the_clusters_environment_and_their_ranks(tmp_path: Path) -> None:
    cluster = replace(load_cluster("local"), environment=("NOTE=a b",), gpus_per_node=0)
    cluster = fit(cluster, Machine(cores=2))

    def look() -> dict[str, str]:
        import os

        names = ("SUBMITIT_LOCAL_GLOBALID", "NOTE", "OMP_NUM_THREADS", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "PATH")
        return {name: os.environ[name] for name in names}

    before = dict(os.environ)
    first, second = follow(submit.start(look, tmp_path, cluster, Machine(cores=2)), print)
    assert dict(os.environ) == before
    assert (first["SUBMITIT_LOCAL_GLOBALID"], second["SUBMITIT_LOCAL_GLOBALID"]) == ("0", "1")
    assert first["NOTE"] == "a b"
    assert (first["OMP_NUM_THREADS"], first["DS_ACCELERATOR"], first["CUDA_VISIBLE_DEVICES"]) == ("1", "cpu", "")
    assert first["PATH"].startswith(str(Path(sys.prefix) / "bin"))


def test_the_command_of_a_dry_run_is_one_line_that_bash_reads(stage: Stage) -> None:
    line = submit.command(stage, fit(load_cluster("local"), Machine(cores=2)))
    assert line.startswith("2 processes on the CPU, each: DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 ")
    assert shutil.which("bash")
    assert subprocess.run(["bash", "-n"], input=line.partition(": ")[2], text=True, check=False).returncode == 0


def test_a_local_cluster_is_a_cluster(stage: Stage) -> None:
    with pytest.raises(UsageError, match="signal_seconds"):
        submit.command(stage, Cluster(name="x", kind="local", gpus_per_node=8, time_minutes=1))


def test_a_task_is_one_process_on_one_node_with_the_gpus_it_needs(tmp_path: Path) -> None:
    task = Task(name="judge", run=("-m", "x"), makes="y", gpus=1)
    job = submit.of_task(task, Path("runs/jobs/r/judge"), CARD)
    lines = flags(submit.script(job, CARD, after=["17"]))
    asked = [lines[key] for key in ("nodes", "ntasks-per-node", "gpus-per-node", "job-name", "dependency")]
    assert asked == ["1", "1", "1", "bigdiff-runs-jobs-r-judge", "afterok:17,singleton"]
    none = flags(submit.script(submit.of_task(replace(task, gpus=0), tmp_path, CARD), CARD))
    assert "gpus-per-node" not in none
    with pytest.raises(UsageError, match="task judge needs 9 GPUs on a node, cluster sd-v1-card has 8"):
        submit.of_task(replace(task, gpus=9), tmp_path, CARD)
    with pytest.raises(UsageError, match=r"launch/local\.py"):
        submit.of_task(task, tmp_path, load_cluster("local"))
