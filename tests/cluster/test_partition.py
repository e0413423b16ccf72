from dataclasses import replace
from typing import Any

import pytest

from bigdiff.cluster.partition import Machine, ask, lacking, minutes, parsed
from bigdiff.config.cluster import Cluster

LINES = [
    "cpu*|c1|64|257000|(null)|12:00:00",
    "gpu|g1|96|2000000|gpu:h100:8(S:0-1),nic:4|2-00:00:00",
    "gpu|g2|96|2000000|gpu:h100:4(S:0),gpu:a30:4|2-00:00:00",
    "gpu|g3|96|1000000|gpu:4|2-00:00:00",
]
CLUSTER = Cluster(name="ours", nodes=2, processes_per_node=8, gpus_per_node=8, cpus_per_process=12)


def test_a_partition_is_read_by_what_is_configured() -> None:
    found = parsed(LINES, "gpu")
    assert found is not None and found.minutes == 2880
    assert [(one.name, one.cpus, one.gpus) for one in found.machines] == [("g1", 96, 8), ("g2", 96, 8), ("g3", 96, 4)]
    assert found.machines[0].memory_gb == pytest.approx(2097.152)
    default = parsed(LINES, "")
    assert (
        default is not None
        and default.name == "cpu"
        and default.machines == (Machine(name="c1", cpus=64, memory_gb=pytest.approx(269.484032), gpus=0),)
    )
    assert parsed(LINES, "none") is None is parsed(LINES[1:], "")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("infinite", None), ("30:00", 30), ("1:00:00", 60), ("1-00:00:00", 1440), ("7-12:30:00", 10830), ("n/a", None)],
)
def test_times_in_slurms_notation(limit: str, expected: int | None) -> None:
    assert minutes(limit) == expected


def test_what_can_never_start_is_said() -> None:
    found = parsed(LINES, "gpu")
    assert found is not None
    assert lacking(CLUSTER, 2, 8, 8, found) == ""
    assert lacking(CLUSTER, 3, 4, 4, found) == ""
    assert lacking(CLUSTER, 3, 8, 8, found) == (
        "3 nodes of 96 CPUs, 8 GPUs are asked for, of the 3 nodes of partition gpu 2 have that"
    )
    assert "of 108 CPUs" in lacking(CLUSTER, 1, 9, 0, found)
    large = replace(CLUSTER, memory_gb=1500)
    assert lacking(large, 2, 4, 4, found) == "" != lacking(large, 3, 4, 4, found)
    long = replace(CLUSTER, time_minutes=2881)
    assert lacking(long, 1, 1, 0, found) == "time_minutes=2881 is above the limit of partition gpu, 2880"


def test_a_real_partition_is_the_same_whatever_its_nodes_do(slurm: Any) -> None:
    before = ask("")
    assert before is not None and before.name == "main" and before.minutes is None
    assert [(one.name, one.cpus, one.gpus) for one in before.machines] == [(f"n{one}", 2, 2) for one in (1, 2, 3, 4)]
    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        assert ask("main") == before
        assert ask("none") is None
    finally:
        slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
