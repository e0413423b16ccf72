import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from submitit.core.utils import cloudpickle_dump

from bigdiff.cluster import again
from bigdiff.cluster.again import Trace, Where, blamed, cause, decide, judge, traces
from bigdiff.cluster.crash import RECORD, Crash, Kind, crashes
from bigdiff.cluster.submit import crashed
from bigdiff.config.errors import LastingError, NodeError, RunError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def crash(step: int, job: str = "20261121-101500-17", kind: Kind = "passing") -> Crash:
    return Crash(time=1.5, job=job, nodes="n[1-2]", status=137, step=step, kind=kind, why="it is gone")


def life(steps: list[int], limit: int) -> int:
    """How often a job starts again whose newest checkpoint is of these steps at its crashes, one after another."""
    earlier: list[Crash] = []
    for step in steps:
        if not decide(crash(step), earlier, limit).again:
            break
        earlier.append(crash(step))
    return len(earlier)


def test_crashes_without_a_new_checkpoint_are_bounded_and_progress_starts_the_count_anew() -> None:
    assert [life([0] * 9, limit) for limit in (1, 2, 3, 5)] == [0, 1, 2, 4]
    assert life([0, 0, 4, 4, 8, 8, 12, 12, 12, 12], 3) == 8
    assert life(list(range(100)), 2) == 100
    assert life([8, 4, 8, 4, 8, 4], 3) == 3  # a damaged checkpoint that is left out is no progress


def test_no_course_of_a_job_starts_it_for_ever() -> None:
    draw = random.Random(3)
    for limit in (1, 2, 3):
        for _ in range(50):
            steps = [draw.choice((0, 4, 8)) for _ in range(40)]
            assert life(steps, limit) <= 3 * (limit - 1) + 2


def test_crashes_of_another_job_do_not_count() -> None:
    others = [crash(4, job="20261120-090000-16")] * 5
    verdict = decide(crash(4), others, 2)
    assert verdict.again
    assert verdict.sentence == (
        "it is gone; crash 1 of at most 2 in a row without a checkpoint after step 4; the job starts again from step 4"
    )
    last = decide(crash(4), [*others, crash(4)], 2)
    assert not last.again and "crash 2 of at most 2" in last.sentence and "(max_crashes)" in last.sentence


@pytest.mark.parametrize("kind", ["input", "lasting"])
def test_what_would_come_again_is_not_tried(kind: Kind) -> None:
    verdict = decide(crash(4, kind=kind), [], 9)
    assert verdict == again.Verdict(
        again=False, sentence="it is gone; this would come again, so the job is not started again"
    )


def trace(error: Exception, task: int = 0) -> Trace:
    script = f"from bigdiff.config.errors import *\nraise {type(error).__name__}({str(error)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    return Trace(task=task, text=done.stderr)


def test_the_cause_is_the_oldest_error_unless_one_lasts() -> None:
    peer, network = trace(ValueError("a\nb")), trace(RunError("the server is away"))
    config, full = trace(UsageError("data.latents is missing")), trace(LastingError("the set is damaged"))
    assert cause([network, peer], 1) == ("passing", "the server is away")
    assert cause([peer, network], 1) == ("passing", "b")
    assert cause([peer, network, config], 137) == ("input", "data.latents is missing")
    assert cause([network, full], 1) == ("lasting", "the set is damaged")
    node = trace(NodeError.of({"n2": "it is slow", "n7": "no CUDA device is seen"}))
    assert cause([peer, node], 1) == ("node", "node n2: it is slow; node n7: no CUDA device is seen")
    kind, why = cause([trace(ValueError("x" * 9999))], 1)
    assert kind == "passing" and why.startswith("ValueError: xxx") and len(why) == 500


def test_without_a_traceback_the_status_speaks() -> None:
    assert cause([], 137) == ("passing", "a process was ended by signal 9 (Killed)")
    assert cause([], 1) == ("passing", "a process ended with status 1, and the log says why")
    assert cause([], 255) == ("passing", "a process ended with status 255, and the log says why")


WHERE = Where(folder=Path("logs/20261121-101500-17"), job="17", nodes=("n1", "n2", "n3"), per_node=2)
LOG = """== start 0 of job 17 on n[1-3]
srun: error: n1: task 0: Killed
crashed: a process was ended by signal 9 (Killed)
== start 1 of job 17 on n[1-3]
srun: error: n2: tasks 2-3: Segmentation fault (core dumped)
srun: error: n3: task 4: Terminated
srun: error: n1: task 0: Killed
"""


def test_a_crash_is_blamed_on_the_only_node_with_trouble() -> None:
    assert blamed("passing", "", [], LOG, WHERE) == ("n2",)  # the first since the newest start
    assert blamed("passing", "", [], LOG.replace("Segmentation fault", "Exited with exit code 1"), WHERE) == ()
    assert blamed("passing", "", [], "", WHERE) == ()
    own, other = Trace(task=4, text="CUDA error"), Trace(task=0, text="x")
    assert blamed("passing", "", [own], LOG, WHERE) == ("n3",)
    assert blamed("passing", "", [own, other], LOG, WHERE) == ()
    assert blamed("node", "node n2: it is slow; node n3: rank 5 fails on H200: x", [own], LOG, WHERE) == ("n2", "n3")
    assert blamed("input", "", [own], LOG, WHERE) == () == blamed("lasting", "", [own], LOG, WHERE)
    alone = Where(folder=WHERE.folder, job="17", nodes=("n1",), per_node=2)
    assert blamed("passing", "", [own], LOG, alone) == ()


def test_what_a_verdict_leaves_out() -> None:
    node = replace(crash(4, kind="node"), blamed=("n2",))
    assert decide(node, [], 3).without == ("n2",)
    killed = replace(crash(4), blamed=("n3",))
    assert decide(killed, [], 3).without == ()  # any program may die once
    assert decide(killed, [replace(killed, step=0)], 3).without == ("n3",)
    assert decide(killed, [replace(killed, job="another")], 3).without == ()


def test_tracebacks_are_read_by_age_and_taken_away(tmp_path: Path) -> None:
    for number, (rank, content) in enumerate([(3, ("error", "first")), (0, ("success", 1)), (1, ("error", "second"))]):
        file = tmp_path / f"17_{rank}_result.pkl"
        cloudpickle_dump(content, file)
        os.utime(file, (100 + number, 100 + number))
    (tmp_path / "17_2_result.pkl").write_bytes(b"")
    cloudpickle_dump(("error", "of another job"), tmp_path / "171_0_result.pkl")
    (tmp_path / "17_submitted.pkl").touch()
    assert traces(tmp_path, "17") == [Trace(task=3, text="first"), Trace(task=1, text="second")]
    assert traces(tmp_path, "17") == []
    assert (tmp_path / "17_submitted.pkl").exists() and (tmp_path / "171_0_result.pkl").exists()


def test_a_crash_stands_in_the_record_before_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-04]")
    folder, saved = tmp_path / "logs" / "20261121-101500-17", tmp_path / "checkpoints" / "step-00000040"
    folder.mkdir(parents=True)
    where = Where(folder=folder, job="17", nodes=("gpu01", "gpu02", "gpu03", "gpu04"), per_node=2)
    assert judge(where, 137, 2)[0].again
    saved.mkdir(parents=True)
    (saved / "index.json").touch()
    assert judge(where, 1, 2)[0].again
    verdict, last = judge(where, 1, 2)
    assert not verdict.again
    found = crashes(tmp_path / "logs")
    assert found[-1] == last and [one.step for one in found] == [0, 40, 40]
    assert {one.nodes for one in found} == {"gpu[01-04]"} and {one.job for one in found} == {folder.name}
    assert json.loads((tmp_path / "logs" / RECORD).read_text()) == [{**asdict(one), "blamed": []} for one in found]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"step": 4}]', "4"])
def test_a_record_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(RunError, match=r"crashes\.json is not a list of crashes"):
        crashes(tmp_path)


def lines(folder: Path, state: str, status: int) -> subprocess.Popen[str]:
    """The last lines of the batch script, behind an srun that ends with `status`; `scontrol` notes what it is told."""
    program = folder / "scontrol"
    answers = f'show\\ hostnames*) echo n1; echo n2;; show*) echo "JobState={state} A=b";;'
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/told\ncase "$*" in {answers} esac\n')
    program.chmod(0o700)
    logs = folder / "run" / "logs" / "20261121-101500-%j"
    Path(str(logs).replace("%j", "17")).mkdir(parents=True, exist_ok=True)
    given = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "1"}
    environment = {**os.environ, **given, "PATH": f"{folder}:{os.environ['PATH']}"}
    script = "\n".join([f"(exit {status})", *crashed(logs, 3)])
    return subprocess.Popen(["bash", "-c", script], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_success_is_left_alone(tmp_path: Path) -> None:
    script = lines(tmp_path, "RUNNING", 0)
    assert script.communicate(timeout=180)[1] == ""
    assert script.returncode == 0 and not (tmp_path / "told").exists()


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT"])
def test_a_job_that_slurm_ends_is_left_to_it(tmp_path: Path, state: str) -> None:
    script = lines(tmp_path, state, 143)
    assert f"status 143, and the job is {state}" in script.communicate(timeout=180)[1]
    assert script.returncode == 1
    assert (tmp_path / "told").read_text() == "show job -o 17\n"
    assert not (tmp_path / "run" / "logs" / RECORD).exists()


def test_a_crashed_job_is_requeued_and_waits_for_its_end(tmp_path: Path) -> None:
    script = lines(tmp_path, "RUNNING", 137)
    end = time.monotonic() + 180
    while not (tmp_path / "told").exists() or "requeue 17" not in (tmp_path / "told").read_text():
        assert time.monotonic() < end and script.poll() is None
        time.sleep(0.05)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(timeout=1)
    subprocess.run(["pkill", "-KILL", "-P", str(script.pid)], check=True)
    script.communicate()
    assert script.returncode == 128 + signal.SIGKILL
    assert [one.status for one in crashes(tmp_path / "run" / "logs")] == [137]


def test_the_sentence_and_the_status_of_unusable_input(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "logs" / "20261121-101500-17"
    folder.mkdir(parents=True)
    cloudpickle_dump(("error", trace(UsageError("data.latents is missing")).text), folder / "17_0_result.pkl")
    script = lines(tmp_path, "RUNNING", 1)
    told = script.communicate(timeout=180)[1]
    assert script.returncode == 2
    assert told.startswith("error: data.latents is missing; this would come again")
    assert "requeue" not in (tmp_path / "told").read_text().split()
