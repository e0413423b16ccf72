import os
import stat
from pathlib import Path

import pytest

from bigdiff.cluster.machine import Machine, fit, this
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_cluster

LOCAL = load_cluster("local")


def shape(cluster: Cluster) -> tuple[int, int, int]:
    return cluster.processes_per_node, cluster.gpus_per_node, cluster.cpus_per_process


def test_without_gpus_the_processes_share_the_cores() -> None:
    assert shape(fit(LOCAL, Machine(cores=2))) == (2, 0, 1)
    assert shape(fit(LOCAL, Machine(cores=16))) == (2, 0, 8)
    assert shape(fit(LOCAL, Machine(cores=2), processes=4)) == (4, 0, 1)


def test_with_gpus_there_is_a_process_for_each() -> None:
    assert shape(fit(LOCAL, Machine(cores=64, gpus=tuple(range(4))))) == (4, 4, 16)
    assert shape(fit(LOCAL, Machine(cores=64, gpus=tuple(range(4))), processes=2)) == (2, 2, 32)


def test_gpus_can_be_declined_and_threads_fixed() -> None:
    cluster = Cluster(name="x", kind="local", processes_per_node=3, gpus_per_node=0, cpus_per_process=5)
    assert shape(fit(cluster, Machine(cores=64, gpus=(0, 1)))) == (3, 0, 5)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="3 processes need 3 GPUs and this machine offers 2"):
        fit(LOCAL, Machine(cores=8, gpus=(0, 1)), processes=3)
    with pytest.raises(UsageError, match="-1 processes"):
        fit(LOCAL, Machine(cores=8), processes=-1)
    with pytest.raises(UsageError, match="kind must be local"):
        fit(load_cluster("example"), Machine(cores=8))
    with pytest.raises(UsageError, match="partition has no effect"):
        fit(Cluster(name="x", kind="local", partition="gpu"), Machine(cores=8))
    with pytest.raises(UsageError, match="max_crashes has no effect"):
        fit(Cluster(name="x", kind="local", max_crashes=5), Machine(cores=8))


def test_visible_devices_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert this().gpus == (5, 7)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this().gpus == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(UsageError, match="give numbers"):
        this()


def test_gpus_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H200 (UUID: a)"\necho "  MIG 1g"\necho "GPU 1: NVIDIA H200"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert this().gpus == (0, 1)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert this() == Machine(cores=len(os.sched_getaffinity(0)))
