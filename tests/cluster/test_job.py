import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import submitit
import yaml
from submitit.core.job_environment import SignalHandler

from bigdiff.cluster import task
from bigdiff.cluster.follow import follow
from bigdiff.cluster.job import TrainJob, alone, compared, queued, requeue
from bigdiff.cluster.machine import Machine, fit
from bigdiff.cluster.submit import local
from bigdiff.cluster.watcher import Beside
from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.config.load import dump, load_cluster, load_stage
from bigdiff.config.recipe import Task
from bigdiff.config.schema import Optim

ROOT = Path(__file__).resolve().parents[2]
LOCAL = load_cluster("local")
JUDGED = Beside(recipe="r", tasks=(Task(name="judge", run=("x.py", "1e5"), makes="{step}", every=20),), cluster=LOCAL)

# A task as submitit starts it on SLURM: the real handler, the real pickle, a `scontrol` that notes what it is told.
TASK = """
import sys
from collections.abc import Callable
from pathlib import Path
from submitit.core.utils import DelayedSubmission

folder = Path(sys.argv[1])

class Job:
    def __call__(self):
        import os, signal
        from bigdiff.cluster.job import requeue
        resubmit = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, lambda *_: None)  # as training does
        requeue(resubmit, int(os.environ["SLURM_PROCID"]))

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(Job(), "second attempt")

job = DelayedSubmission(Job())
job.set_timeout(60, 3)
job.dump(folder / "4711_submitted.pkl")
"""


def as_slurm_task(folder: Path, state: str, rank: int = 0) -> subprocess.Popen[str]:
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/told\necho "JobId=4711 JobState={state} Reason=None"\n')
    program.chmod(0o700)
    subprocess.run([sys.executable, "-c", TASK, folder], check=True, cwd=ROOT)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "4711",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": "2",
    }
    command = [sys.executable, "-m", "submitit.core._submit", folder]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_rank_0_dumps_the_next_attempt_and_requeues(tmp_path: Path) -> None:
    task = as_slurm_task(tmp_path, "RUNNING")
    _, log = task.communicate(timeout=60)
    assert (tmp_path / "told").read_text().splitlines() == ["show job -o 4711", "requeue 4711"], log
    assert task.returncode == 255  # what submitit exits with
    again = submitit.helpers.DelayedSubmission.load(tmp_path / "4711_submitted.pkl")
    assert again.args == ("second attempt",)
    assert not list(tmp_path.glob("*_result.pkl"))  # a result would make the waiting job look finished


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_cancelled_job_stays_cancelled(tmp_path: Path, state: str) -> None:
    task = as_slurm_task(tmp_path, state)
    _, log = task.communicate(timeout=60)
    assert (tmp_path / "told").read_text().splitlines() == ["show job -o 4711"]
    assert task.returncode not in (0, 255)  # a success would start the next stage of the recipe
    assert f"the job is {state}, so it is not requeued" in log


def test_the_other_ranks_wait_for_their_end(tmp_path: Path) -> None:
    task = as_slurm_task(tmp_path, "RUNNING", rank=1)
    with pytest.raises(subprocess.TimeoutExpired):
        task.wait(timeout=3)
    task.kill()
    task.communicate()
    assert not (tmp_path / "told").exists()


def test_without_submitits_handler_the_job_says_so(
    put_program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_program("scontrol", "echo JobState=RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(RunError, match="submit it again"):
        requeue(signal.SIG_DFL, 0)


def test_the_last_time_out_ends_the_job_for_good(
    put_program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_program("scontrol", "echo JobState=RUNNING")
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1", "SUBMITIT_FOLDER": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    job = submitit.helpers.DelayedSubmission(
        TrainJob(stage=load_stage("512px-cfg"), cluster=load_cluster("sd-v1-card"))
    )
    job.set_timeout(1, 0)  # a job of a minute: any warning is a time-out, and none is left
    environment = submitit.JobEnvironment()
    handler = SignalHandler(environment, environment.paths, job)
    with pytest.raises(LastingError, match="max_requeues"):
        requeue(handler.checkpoint_and_try_requeue, 0)


@pytest.mark.parametrize("beside", [None, JUDGED])
def test_a_job_survives_pickling_and_its_checkpoint_is_itself(beside: Beside | None) -> None:
    job = TrainJob(stage=load_stage("512px-cfg"), cluster=LOCAL, port=20005, beside=beside)
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.checkpoint().function == job


def test_a_job_of_another_version_keeps_its_settings_or_is_refused() -> None:
    """Settings by name: one that came since has its default, one that went is named."""
    stage = load_stage("512px-cfg", ["optim.lr=3e-5"])
    told, cluster = yaml.safe_load(dump(stage)), dump(LOCAL)
    del told["speed"], told["optim"]["weight_decay"]
    before = queued(yaml.safe_dump(told), cluster, (), 0).stage
    assert before == replace(stage, optim=replace(stage.optim, weight_decay=Optim(lr=1e-4).weight_decay))
    told["optim"]["momentum"] = 0.9
    with pytest.raises(UsageError, match=r"another version of this program.*submit it anew.*optim\.momentum"):
        queued(yaml.safe_dump(told), cluster, (), 0)
    with pytest.raises(UsageError, match=r"another version.*unheard"):
        task.queued("name: a\nrun: [x]\nmakes: b\nunheard: 1\n")
    judge = task.TaskJob(task=JUDGED.tasks[0])
    assert pickle.loads(pickle.dumps(judge)) == judge


def test_a_forecast_that_cannot_be_made_is_a_line(tmp_path: Path) -> None:
    """By the real planner; the one that can be is tests/plan/test_comparison.py's."""
    assert compared(tmp_path / "none") == (
        f"no forecast was compared: {tmp_path}/none has no config.yaml: give the folder of a run"
    )
    (tmp_path / "config.yaml").write_text(dump(load_stage("quickstart-32px")))
    (tmp_path / "usage.json").write_text("[")  # no UsageError
    assert compared(tmp_path).startswith(f"no forecast was compared: {tmp_path}/usage.json is not a list of starts")
    (tmp_path / "usage.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text("{\n")
    assert compared(tmp_path).startswith("no forecast was compared: ")


def test_a_run_is_trained_by_one_job_at_a_time(tmp_path: Path) -> None:
    script = "import sys, pathlib; from bigdiff.cluster.job import alone\nwith alone(pathlib.Path(sys.argv[1])): pass"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False
        )

    with alone(tmp_path):
        refused = other()
    assert f"is being trained by process {os.getpid()}" in refused.stderr
    assert other().returncode == 0


def test_before_training_listens_a_stop_just_ends_the_process(tmp_path: Path) -> None:
    script = "import time; from bigdiff.cluster import job; job.leave_when_told(); print(1, flush=True); time.sleep(60)"
    for number in (signal.SIGTERM, signal.SIGUSR2):
        task = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
        assert task.stdout is not None and task.stdout.readline()
        task.send_signal(number)
        assert task.wait(timeout=50) == 128 + number
        task.stdout.close()


def test_the_real_job_reaches_training_and_its_refusal_reaches_the_user(tmp_path: Path) -> None:
    settings = [f"runs={tmp_path}", f"data.latents={tmp_path / 'nowhere'}", "batch.total=64", "batch.micro=4"]
    stage, here = load_stage("256px", settings), Machine(cores=1)
    with pytest.raises(UsageError, match="nowhere"):
        follow(local(stage, fit(load_cluster("local"), here, processes=1), here), print)
