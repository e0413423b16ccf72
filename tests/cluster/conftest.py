"""A real SLURM of four nodes on this machine: slurmctld, slurmds and munged, in a folder of their own.

And programs in its clients' place, for answers that it gives rarely.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

from bigdiff.checkpoint import layout
from bigdiff.cluster import submit
from bigdiff.config.cluster import Cluster, Preflight
from bigdiff.config.load import load_stage
from bigdiff.runtime.files import sha256

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")  # Debian: slurm-wlm
CONFIGURATION = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its old credential is void: 120 s by default
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdTimeout=10
# less than MessageTimeout: or slurmctld repeats the kill of a crashed step a minute later, on the one started since
KillWait=3
MessageTimeout=8
FirstJobId={first}
JobRequeue=1
# what it prints is set in a task's environment: a node can be given another one than its peers
TaskProlog={folder}/prolog
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1{number} Port={port} CPUs=2 RealMemory=4000 Gres=gpu:2\n"
NODES = ("n1", "n2", "n3", "n4")
CLUSTER = Cluster(
    name="test",
    nodes=2,
    processes_per_node=1,
    gpus_per_node=0,
    cpus_per_process=1,
    time_minutes=30,  # of jobs up to ten minutes submitit counts each preemption as a time-out
    environment=("GLOO_SOCKET_IFNAME=lo", "HF_HUB_OFFLINE=1"),
    preflight=Preflight(slow=0.0),  # the nodes share two cores with whatever else runs
)


class Slurm:
    """The daemons. Every process below them carries the folder's name in its environment, and ends with `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        host = socket.gethostname().partition(".")[0]
        first, *ports = free_ports(1 + len(NODES))
        text = CONFIGURATION.format(
            name=f"t{os.getpid()}", host=host, folder=folder, port=first, first=random.randrange(1000, 900_000)
        )
        for number, (node, port) in enumerate(zip(NODES, ports, strict=True), start=1):
            text += NODE.format(name=node, host=host, number=number, port=port)
        for part in ("munge", "state", *NODES):
            (folder / part).mkdir(mode=0o700)
        folder.chmod(0o755)
        (folder / "slurm.conf").write_text(text)
        for gpu in ("gpu0", "gpu1"):  # SLURM asks of a GPU no more than that its file is there
            (folder / gpu).symlink_to("/dev/null")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        (folder / "prolog").write_text(
            f'#!/bin/sh\n[ ! -f {folder}/"$SLURMD_NODENAME".env ] || . {folder}/"$SLURMD_NODENAME".env\n'
        )
        (folder / "prolog").chmod(0o755)
        # Debian's version ends where cgroups are missing, although nothing here uses them
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        munge = folder / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._start("munged", "-F", "--force", *(f"--{option}={munge}/{name}" for option, name in files.items()))
        _until(lambda: (munge / "socket").exists(), "munged")
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        _until(lambda: self.idle() == list(NODES), "idle nodes")

    def idle(self) -> list[str]:
        """Names of the nodes that answer and that nothing runs on."""
        rows = [line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()]
        return [name for name, state in rows if state == "idle"]  # "idle*" does not answer

    def run(self, *words: str) -> str:
        """The output of a client; without its daemon it would wait for minutes."""
        told = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=120, check=False
        )
        return told.stdout

    def job(self, number: str, run: Path) -> "Job":
        """A job of this SLURM, by the folder above its logs."""
        return Job(self, number, run)

    def lose(self, node: str) -> None:
        """What a power failure does to a node: its daemon and all that runs there are gone at once."""
        of_node = f"SLURMD_NODENAME={node}".encode()
        for process in list(self._processes()):
            with suppress(OSError):
                folder = Path(f"/proc/{process}")
                words = (folder / "cmdline").read_bytes().split(b"\0")
                daemon = node.encode() in words or any(one.endswith(f"({node})".encode()) for one in words)
                if daemon or of_node in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(process, signal.SIGKILL)

    def boot(self, node: str) -> None:
        """Start the daemon of a node that was lost."""
        self._start("slurmd", "-D", "-N", node)

    def stop(self) -> None:
        for _ in range(50):
            if not (found := list(self._processes())):
                for daemon in self._daemons:
                    daemon.wait()
                return
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        raise AssertionError(f"processes of {self.folder} live on: {found}")

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("ab") as log:
            daemon = subprocess.Popen(
                words,
                env={**_clean(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def _processes(self) -> Iterator[int]:
        wanted = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = wanted in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid()
                if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    yield int(entry.name)


class Job:
    """What can be known of a job, and done to it, from outside."""

    def __init__(self, slurm: "Slurm", number: str, run: Path) -> None:
        self.slurm, self.number, self.run = slurm, number, run

    def shown(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm.run("scontrol", "show", "job", "-o", self.number)))

    def wait(self, *, step: int, seconds: float = 300) -> None:
        self.until(lambda: self.metrics() and self.metrics()[-1]["step"] >= step, f"step {step}", seconds)

    def end(self, seconds: float = 300) -> tuple[str, str, int]:
        """State, exit code and number of restarts, once the job has ended and its processes are gone."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        self.until(lambda: self.shown()["JobState"] not in going, "end", seconds)
        shown = self.shown()
        return shown["JobState"], shown["ExitCode"], int(shown["Restarts"])

    def metrics(self) -> list[dict[str, Any]]:
        file = self.run / layout.METRICS
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def rank_1(self, seconds: float = 180) -> int:
        found: list[int] = []
        self.until(lambda: found.extend(self.ranks("1")) or found, "rank 1", seconds)
        return found[0]

    def losses(self) -> list[dict[str, float]]:
        """All that was measured of each step, but for times and rates."""
        return [
            {key: value for key, value in line.items() if "loss" in key or "norm" in key} for line in self.metrics()
        ]

    def weights(self) -> list[str]:
        newest = layout.latest(self.run)
        assert newest is not None
        return [newest.name, *(sha256(file) for file in sorted(newest.glob("rank-*.safetensors")))]

    def log(self) -> str:
        (log,) = (self.run / "logs").glob(f"*-{self.number}/{self.number}_0_log.out")
        return log.read_text()

    def ranks(self, rank: str) -> Iterator[int]:
        wanted = {f"SLURM_JOB_ID={self.number}".encode(), f"SLURM_PROCID={rank}".encode()}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                named = b"submitit.core._submit" in (folder / "cmdline").read_bytes()
                if named and wanted <= {*(folder / "environ").read_bytes().split(b"\0")}:
                    yield int(folder.name)

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} in {seconds} s: {self.shown()}"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def _slurm() -> Iterator[Slurm]:
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: `make test` as root installs Debian's slurm-wlm")
    if os.geteuid():
        pytest.skip("SLURM's daemons are started as root here")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    daemons = None
    try:
        daemons = Slurm(folder)
        yield daemons
    finally:
        if daemons is not None:
            daemons.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster, idle; its clients find it through the environment."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
        monkeypatch.delenv(name)
    for name, value in _slurm.environment.items():
        monkeypatch.setenv(name, value)
    _until(lambda: not _slurm.run("squeue", "-h") and _slurm.idle() == list(NODES), "empty queue and idle nodes")
    return _slurm


@pytest.fixture
def put_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program in front of those of its name: (name, lines of shell)."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o700)

    return put


@pytest.fixture
def cluster() -> Cluster:
    """Two nodes of the SLURM of these tests, with one process each."""
    return CLUSTER


@pytest.fixture
def start(slurm: Slurm, toy: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submit the toy stage under a name, with runs in `tmp_path`, on a cluster that differs as given."""
    jobs: list[str] = []

    def begin(name: str, *settings: str, **cluster: Any) -> Job:
        common = [f"name={name}", f"runs={tmp_path}", "steps=300", "checkpoint.every=20", "batch.micro=4"]
        stage, chosen = load_stage(str(toy / "stage.yaml"), [*common, *settings]), replace(CLUSTER, **cluster)
        jobs.append(submit.slurm(submit.of_stage(stage, chosen), chosen))
        return Job(slurm, jobs[-1], tmp_path / name)

    yield begin
    for job in jobs:
        slurm.run("scancel", job)


def _clean() -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return {**found, "PATH": f"{found['PATH']}:/usr/sbin:/sbin"}


def _until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, f"no {what} in two minutes"
        time.sleep(0.05)
