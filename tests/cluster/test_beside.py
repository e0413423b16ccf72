"""Tasks at checkpoints, on a real SLURM; what looks for the checkpoints is in test_watcher.py."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigdiff.cluster.beside import submitted
from bigdiff.cluster.chain import Chain, check
from bigdiff.cluster.chain import submitted as all_submitted
from bigdiff.config.cluster import Cluster
from bigdiff.config.graph import beside, chain
from bigdiff.config.load import load_stage
from bigdiff.config.recipe import Recipe, Task

Slurm = Any  # of tests/cluster/conftest.py
WRITES = """
import json, os, sys
with open(sys.argv[1] + "~", "w") as file:
    json.dump(dict(os.environ), file)
os.rename(sys.argv[1] + "~", sys.argv[1])
"""


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_stage_has_its_checkpoints_judged_while_it_trains(
    slurm: Slurm, toy: Path, tmp_path: Path, cluster: Cluster
) -> None:
    settings = ["steps=400", "checkpoint.every=20", "checkpoint.keep_every=40", "name=toy", f"runs={tmp_path}"]
    stage = load_stage(str(toy / "stage.yaml"), settings)
    made = "{runs}/made-{step}"
    judge = Task(name="judge", run=("-c", WRITES, made), makes=made, after=("toy",), every=200)
    recipe = Recipe(name="r", stages=("toy",), tasks=[judge])
    wanted = Chain(recipe="r", nodes=chain([stage]), runs=stage.runs, beside=beside(recipe, [stage], "test"))
    (line,) = all_submitted(wanted, cluster, check(wanted, cluster))
    number = line.partition("as job ")[2].partition(",")[0]
    until(lambda: (tmp_path / "made-400").exists())
    log = next((tmp_path / "toy" / "logs").glob(f"*/{number}_0_log.out")).read_text()
    order = [line.split()[0] for line in log.splitlines() if line.startswith("judge-")]
    assert order == ["judge-200", "judge-400"]
    found = json.loads((tmp_path / "made-200").read_text())
    assert found["SLURM_NTASKS"] == "1" and found["SLURM_JOB_ID"] != number
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & found.keys()
    until(lambda: not slurm.run("squeue", "-h"))
    # the same command again does what is left
    (tmp_path / "made-200").unlink()
    lines = list(all_submitted(wanted, cluster, check(wanted, cluster)))
    assert lines[0].startswith("toy is finished") and lines[1].startswith("judge-200 submitted as job ")
    assert lines[2] == f"judge-400 is finished: {tmp_path}/made-400 is there"
    until(lambda: (tmp_path / "made-200").exists())


def test_a_task_that_waits_is_not_submitted_again(slurm: Slurm, tmp_path: Path, cluster: Cluster) -> None:
    task = Task(name="judge-20", run=("-c", "import time; time.sleep(60)"), makes=str(tmp_path / "made"))
    first = submitted(task, tmp_path / "judge-20", cluster)
    number = first.partition("as job ")[2].partition(",")[0]
    again = submitted(task, tmp_path / "judge-20", cluster)
    slurm.run("scancel", number)
    assert again.startswith(f"judge-20 is job {number} already, ")
    (tmp_path / "made").touch()
    assert submitted(task, tmp_path / "judge-20", cluster) == f"judge-20 is finished: {tmp_path / 'made'} is there"
