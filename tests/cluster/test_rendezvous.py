import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bigdiff.cluster.rendezvous import (
    LOOPBACK,
    PORTS,
    Rendezvous,
    export,
    find,
    first_address,
    free_port,
    slurm_port,
)
from bigdiff.config.errors import RunError

SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}


def test_a_local_process_meets_on_the_jobs_port() -> None:
    place = find(LOCAL, 20123, lambda nodes: pytest.fail("no node list on one machine"))
    assert place == Rendezvous(rank=1, local_rank=1, world_size=2, master_addr=LOOPBACK, master_port=20123)


def test_slurm_processes_compute_the_same_meeting_point() -> None:
    places = [find({**SLURM, "SLURM_PROCID": str(rank)}, 0, lambda nodes: f"first of {nodes}") for rank in range(16)]
    assert {(place.master_addr, place.master_port) for place in places} == {("first of gpu[07-08]", slurm_port(4711))}
    assert [place.rank for place in places] == list(range(16))
    assert {place.local_rank for place in places} == {3}


def test_slurm_ports_differ_between_neighbours_and_leave_the_ephemeral_range_alone() -> None:
    ports = [slurm_port(job) for job in range(1_000_000, 1_000_000 + len(PORTS))]
    assert len(set(ports)) == len(PORTS)
    assert max(ports) < 32768


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NODELIST"])
def test_a_missing_variable_is_named(missing: str) -> None:
    environment = {key: value for key, value in SLURM.items() if key != missing}
    with pytest.raises(RunError, match=missing):
        find(environment, 0, str)


def test_outside_of_a_job_is_an_error() -> None:
    with pytest.raises(RunError, match=r"launch/local\.py"):
        find({}, 0, str)


def test_export_writes_what_torch_reads_and_keeps_the_users_interface() -> None:
    place = Rendezvous(rank=1, local_rank=0, world_size=4, master_addr=LOOPBACK, master_port=20001)
    environment = {"GLOO_SOCKET_IFNAME": "mine", "CUDA_VISIBLE_DEVICES": "6,7"}
    export(place, environment)
    assert environment == {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": "20001",
        "GLOO_SOCKET_IFNAME": "mine",
        "CUDA_VISIBLE_DEVICES": "6,7",
    }


def test_gloo_takes_the_loopback_device_on_one_machine_only() -> None:
    near: dict[str, str] = {}
    export(Rendezvous(rank=0, local_rank=0, world_size=1, master_addr=LOOPBACK, master_port=1), near)
    assert near["GLOO_SOCKET_IFNAME"] in [name for _, name in socket.if_nameindex()]
    far: dict[str, str] = {}
    export(Rendezvous(rank=0, local_rank=0, world_size=1, master_addr="10.1.2.3", master_port=1), far)
    assert "GLOO_SOCKET_IFNAME" not in far


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    assert port in PORTS
    with socket.socket() as server:
        server.bind((LOOPBACK, port))


def test_the_first_host_is_taken_when_it_resolves(put_program: Callable[[str, str], None]) -> None:
    put_program("scontrol", 'test "$*" = "show hostnames local[1-2]" && printf "localhost\\nother\\n"')
    assert first_address("local[1-2]") == "localhost"


def test_the_node_address_stands_in_for_a_name_that_does_not_resolve(put_program: Callable[[str, str], None]) -> None:
    answers = 'case "$2" in hostnames) echo n1.invalid ;; node) echo "NodeName=n1 NodeAddr=127.0.0.11 Port=1" ;; esac'
    put_program("scontrol", answers)
    assert first_address("n1.invalid") == "127.0.0.11"


def test_a_silent_or_missing_scontrol_is_an_error(
    put_program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_program("scontrol", "exit 1")
    with pytest.raises(RunError, match="scontrol show hostnames n1 failed"):
        first_address("n1")
    put_program("scontrol", "exit 0")
    with pytest.raises(RunError, match="no answer"):
        first_address("n1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RunError, match="scontrol not found"):
        first_address("n1")
