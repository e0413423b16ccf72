"""Graphs of jobs: a script in sbatch's place for what is submitted, a real SLURM for what is not."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster.chain import Chain, check, is_done, scripts, submitted
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError
from bigdiff.config.graph import Node, chain, graph
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.config.recipe import Recipe, Task, load_recipe
from bigdiff.config.schema import Stage

Slurm = Any  # of tests/cluster/conftest.py
CARD = load_cluster("sd-v1-card")
CPUS = Cluster(name="test", nodes=2, processes_per_node=1, gpus_per_node=0, cpus_per_process=1)
OTHER = ["data.latents=s3://bucket/set", "data.cache=/scratch", "data.cache_gb=1"]
TESTED = 'case "$*" in *--test-only*) exit 0 ;; esac; '


def of(*stages: Stage) -> Chain:
    return Chain(recipe="", nodes=chain(stages), runs=stages[0].runs)


def submit(wanted: Chain, cluster: Cluster) -> Iterator[str]:
    return submitted(wanted, cluster, check(wanted, cluster))


def flags(script: str) -> dict[str, str]:
    return {key: value for key, _, value in re.findall(r"^#SBATCH --([a-z-]+)(=(.*))?$", script, re.MULTILINE)}


@pytest.fixture
def put_sbatch(put_program: Callable[[str, str], None], tmp_path: Path) -> Callable[[str], None]:
    """Put lines of shell in sbatch's place, beside an empty queue; each question to sinfo is a line of `asked`."""
    put_program("squeue", "")
    put_program("sinfo", f'echo "$*" >> {tmp_path}/asked')
    return lambda body: put_program("sbatch", body)


def test_a_chain_hands_over_by_job_id_and_skips_what_is_finished(
    put_sbatch: Callable[[str], None], tmp_path: Path, toy: Path
) -> None:
    put_sbatch(
        f'{TESTED}n=$(ls {tmp_path}/*.got 2>/dev/null | wc -l); cp "$1" {tmp_path}/$n.got; echo "job $((100 + n))"',
    )
    runs = tmp_path / "runs"
    names = ("256px", "512px", "512px-aesthetics")
    stages = [load_stage(name, [f"runs={runs}", *OTHER]) for name in names]
    done = runs / "256px" / "checkpoints" / "step-00237000"
    done.mkdir(parents=True)
    (done / "index.json").write_text("{}")
    lines = list(submit(of(*stages), CARD))
    assert len((tmp_path / "asked").read_text().splitlines()) == 1, "a partition is the same for all jobs"
    assert lines[0].startswith("256px is finished")
    assert lines[1].startswith("512px submitted as job 100, at step 0 of 194,000; logs")
    assert lines[2].startswith("512px-aesthetics submitted as job 101, at step 0 of ")
    assert flags((tmp_path / "0.got").read_text())["dependency"] == "singleton"
    assert flags((tmp_path / "1.got").read_text())["dependency"] == "afterok:100,singleton"
    shown = [flags(text)["dependency"] for _, text in scripts(of(*stages), CARD)]
    assert shown == ["singleton", "'afterok:<id of 256px>,singleton'", "'afterok:<id of 512px>,singleton'"]


def test_a_chain_whose_data_is_not_there_submits_nothing(put_sbatch: Callable[[str], None], tmp_path: Path) -> None:
    put_sbatch(f'{TESTED}cp "$1" {tmp_path}/got; echo "job 1"')
    near, far = f"data.latents={tmp_path}/none", "data.latents=s3://bucket/set"
    with pytest.raises(UsageError, match=r"none has no manifest\.json: it is not a finished shard set"):
        list(submit(of(load_stage("256px", [f"runs={tmp_path}", near])), CARD))
    assert not (tmp_path / "got").exists()
    remote = load_stage("256px", [f"runs={tmp_path}", far, "data.cache=/scratch", "data.cache_gb=1"])
    assert "submitted as job 1" in next(submit(of(remote), CARD))


def test_a_chain_that_starts_from_a_run_which_is_not_there_submits_nothing(
    put_sbatch: Callable[[str], None], tmp_path: Path, toy: Path
) -> None:
    put_sbatch(f'{TESTED}cp "$1" {tmp_path}/got; echo "job 1"')
    given = [f"runs={tmp_path / 'runs'}", *OTHER]
    stages = [load_stage(name, given) for name in ("512px", "512px-aesthetics")]
    with pytest.raises(UsageError, match=r"init_from=256px: .* has no checkpoint; train that stage first"):
        list(submit(of(*stages), CARD))
    assert not (tmp_path / "got").exists()
    begun = tmp_path / "runs" / "512px" / "checkpoints" / "step-00005000"
    begun.mkdir(parents=True)
    (begun / "index.json").write_text("{}")
    assert [line.split()[0] for line in submit(of(*stages), CARD)] == ["512px", "512px-aesthetics"]


def test_branches_of_a_graph_wait_for_the_stage_they_start_from(tmp_path: Path) -> None:
    stages = [one.stage for one in load_recipe("sd-v1", [f"runs={tmp_path}"])[1]]
    waits = [flags(text)["dependency"] for _, text in scripts(of(*stages), CARD)]
    assert waits[3:] == ["'afterok:<id of 512px-aesthetics>,singleton'"] * 3


def task(tmp_path: Path, name: str, *words: str, **more: Any) -> Task:
    return replace(Task(name=name, run=("-c", *words), makes=str(tmp_path / name)), **more)


def joined(tmp_path: Path, stages: list[Stage], *tasks: Task) -> Chain:
    recipe = Recipe(name="r", stages=(), tasks=list(tasks))
    return Chain(recipe="r", nodes=graph(recipe, stages, "test"), runs=str(tmp_path))


def test_tasks_and_stages_are_one_graph_of_jobs(slurm: Slurm, toy: Path, tmp_path: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", f"data.latents={tmp_path}/set/"])
    tasks = [task(tmp_path, "set", "1"), task(tmp_path, "there", "1")]
    wanted = joined(tmp_path, [stage], *tasks, task(tmp_path, "judge", "1", after=("toy", "there")))
    (tmp_path / "there").touch()
    assert [is_done(node) for node in wanted.nodes] == [False, True, False, False]
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        lines = list(submit(wanted, CPUS))
        jobs = dict(re.findall(r"^(\S+) submitted as job (\d+)", "\n".join(lines), re.MULTILINE))
        assert list(jobs) == ["set", "toy", "judge"] and lines[1] == f"there is finished: {tmp_path}/there is there"
        waits = {name: slurm.run("squeue", "-h", "-j", job, "-o", "%E").strip() for name, job in jobs.items()}
        assert waits == {
            "set": "(null)",
            "toy": f"afterok:{jobs['set']}(unfulfilled)",
            "judge": f"afterok:{jobs['toy']}(unfulfilled)",
        }
        again = list(submit(wanted, CPUS))
        assert [line.split()[3] for line in again if "already, pending" in line] == list(jobs.values())
        slurm.run("scancel", jobs["toy"])
        anew = [line for line in submit(wanted, CPUS) if "submitted" in line]
        assert [line.split()[0] for line in anew] == ["toy", "judge"]
    finally:
        slurm.run("scancel", "--state=PENDING")
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (
            {"partition": "none"},
            [],
            "would not run stage good as cluster test has it: invalid partition",
        ),
        ({"constraint": "a100"}, [], "Invalid feature specification"),
        (
            {"nodes": 8},
            ["batch.micro=1"],
            "8 nodes of 1 CPUs are asked for, of the 4 nodes of partition main 4 have that",
        ),
        ({"cpus_per_process": 3}, [], "2 nodes of 3 CPUs are asked for"),
        ({}, ["data.latents=/nowhere"], "/nowhere has no manifest"),
        ({}, ["resolution=16"], "latents has resolution 8, stage toy needs 16: encode a set for this stage"),
        ({}, ["init_from=other"], "init_from=other: .* has no checkpoint"),
    ],
)
def test_a_chain_of_which_a_part_cannot_run_submits_nothing(
    slurm: Slurm, toy: Path, tmp_path: Path, change: dict[str, Any], settings: list[str], sentence: str
) -> None:
    good = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "name=good", "batch.micro=1"])
    bad = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "batch.micro=1", *settings])
    with pytest.raises(UsageError, match=sentence):
        list(submit(of(good, bad), replace(CPUS, **change)))
    assert slurm.run("squeue", "-h") == "" and not (tmp_path / "good").exists()


def test_nodes_that_are_down_for_the_moment_are_waited_for(slurm: Slurm, toy: Path, tmp_path: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}"])
    for name in ("n1", "n2", "n3"):
        slurm.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
    try:
        check(of(stage), CPUS)
    finally:
        for name in ("n1", "n2", "n3"):
            slurm.run("scontrol", "update", f"NodeName={name}", "State=RESUME")


def test_the_folder_of_a_task_is_no_runs(tmp_path: Path) -> None:
    one = task(tmp_path, "set", "1")
    wanted = Chain(recipe="r", nodes=(Node(name="set", work=one),), runs="runs")
    assert wanted.folder(wanted.nodes[0]) == Path("runs/jobs/r/set")
