"""GPUs that SLURM only believes in: that it gives them to the processes, and what a stage says that finds none."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigdiff.cluster import submit
from bigdiff.cluster.crash import crashes
from bigdiff.config.cluster import Cluster
from bigdiff.config.recipe import Task

Slurm = Any  # of tests/cluster/conftest.py
GPUS = {"gpus_per_node": 2, "processes_per_node": 2}
# writes its environment, and waits for the other, so that both have their GPU at the same time
WRITES = """
import json, os, sys, time
with open(sys.argv[1] + "~", "w") as file:
    json.dump(dict(os.environ), file)
os.rename(sys.argv[1] + "~", sys.argv[1])
end = time.monotonic() + 240
while not os.path.exists(sys.argv[2]):
    assert time.monotonic() < end
    time.sleep(0.05)
"""


def test_tasks_get_gpus_of_their_own(slurm: Slurm, tmp_path: Path) -> None:
    has = Cluster(name="test", nodes=1, cpus_per_process=1, time_minutes=10, exclude="n[2-4]", **GPUS)
    one, another = (str(tmp_path / name) for name in ("one", "another"))
    numbers = []
    for mine, other in ((one, another), (another, one)):
        task = Task(name="t", run=("-c", WRITES, mine, other), makes=mine, gpus=1)
        numbers.append(submit.slurm(submit.of_task(task, Path(f"{mine}-logs"), has), has))
    end = time.monotonic() + 360
    while slurm.run("squeue", "-h"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert all("JobState=COMPLETED" in slurm.run("scontrol", "show", "job", "-o", number) for number in numbers)
    seen = [json.loads(Path(file).read_text()) for file in (one, another)]
    assert [found["SLURM_STEP_NODELIST"] for found in seen] == ["n1", "n1"]
    assert sorted(found["CUDA_VISIBLE_DEVICES"] for found in seen) == ["0", "1"]


def test_processes_of_a_stage_that_see_no_gpu_say_what_to_change(slurm: Slurm, start: Callable[..., Any]) -> None:
    job = start("lacking", "batch.micro=2", nodes=2, **GPUS)
    assert job.shown()["TresPerNode"] == "gres:gpu:2"
    assert job.end() == ("FAILED", "2:0", 0)
    (crash,) = crashes(job.run / "logs")
    assert crash.kind == "input" and "no CUDA device is seen on node n" in crash.why
    assert "the cluster's gpus_per_node must be 0 to train on CPUs" in crash.why
