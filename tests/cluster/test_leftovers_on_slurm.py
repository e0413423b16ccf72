"""Twenty submissions in a row to a real SLURM: what is left of them on the machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigdiff.cluster.rendezvous import slurm_port

Slurm = Any  # of tests/cluster/conftest.py
COUNT = 20
LISTENS = "0A"  # of /proc/net/tcp


def listening() -> set[int]:
    """Ports that something on this machine listens on."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS}


def processes(number: str) -> list[str]:
    """Command lines that have a job's id in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"SLURM_JOB_ID={number}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and int(folder.name) != os.getpid():
                found.append((folder / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return found


def test_twenty_submissions_leave_nothing_behind(slurm: Slurm, start: Callable[..., Any], tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # half of them are over before they have begun, or in the middle
    jobs = []
    for number in range(COUNT):
        environment = ("GLOO_SOCKET_IFNAME=lo", "HF_HUB_OFFLINE=1", f"TMPDIR={temporary}")
        settings = ("steps=20", "batch.micro=8", "checkpoint.every=10")
        jobs.append(start(f"run-{number}", *settings, nodes=1, environment=environment))
        if number % 4 == 1:
            slurm.run("scancel", jobs[-1].number)
        if number % 4 == 3:
            jobs[-1].until(
                lambda job=jobs[-1]: list(job.ranks("0")) or job.shown()["JobState"] == "COMPLETED", "0", 240
            )
            slurm.run("scancel", jobs[-1].number)
    ended = [job.end(300)[0] for job in jobs]
    assert ended.count("COMPLETED") >= COUNT // 2 and set(ended) <= {"COMPLETED", "CANCELLED"}
    for _ in range(100):  # the last processes go after their job
        left = [line for job in jobs for line in processes(job.number)]
        if not left:
            break
        time.sleep(0.1)
    assert left == [] and slurm.run("squeue", "-h") == ""
    assert not listening() & {slurm_port(int(job.number)) for job in jobs}
    assert list(temporary.iterdir()) == []
    finished = [job for job, state in zip(jobs, ended, strict=True) if state == "COMPLETED"]
    for job in finished:
        assert {one.name for one in (job.run / "checkpoints").iterdir()} == {"step-00000010", "step-00000020"}
        assert not [one for one in job.run.rglob("*") if one.name.endswith((".tmp", ".lock", ".record"))]
