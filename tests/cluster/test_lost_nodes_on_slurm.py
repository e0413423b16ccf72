"""A real SLURM that loses a node, and that is told that another is down, while a run trains there."""

from collections.abc import Callable
from typing import Any

Slurm = Any  # of tests/cluster/conftest.py


def test_a_run_that_loses_its_nodes_ends_as_one_that_nothing_happened_to(
    slurm: Slurm, start: Callable[..., Any]
) -> None:
    plain, job = start("plain", exclude="n[1-2]"), start("struck")
    job.wait(step=60)
    slurm.lose("n2")  # with what ran there; its address answers no more
    try:
        job.wait(step=100, seconds=300)
        assert "n2" not in slurm.run("scontrol", "show", "hostnames", job.shown()["NodeList"]).split()
        assert plain.end() == ("COMPLETED", "0:0", 0)  # before the nodes that it uses, too, go
        first = slurm.run("scontrol", "show", "hostnames", job.shown()["NodeList"]).split()[-1]
        slurm.run("scontrol", "update", f"NodeName={first}", "State=DOWN", "Reason=test")
        slurm.boot("n2")
        assert job.end()[:2] == ("COMPLETED", "0:0")
    finally:
        slurm.boot("n2") if "n2" not in slurm.idle() else None
        for node in ("n1", "n3", "n4"):
            slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert 2 <= int(job.shown()["Restarts"]) <= 3
    assert job.losses() == plain.losses()
    assert job.weights() == plain.weights()
