"""Who am I among a job's processes and where do they meet: from the launcher's variables to RANK, MASTER_ADDR, ..."""

import os
import random
import re
import socket
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from bigdiff.cluster.clients import hostnames, scontrol
from bigdiff.config.errors import RunError

# Below the kernel's ephemeral ports (32768 and up), which any client connection may hold for a moment
PORTS = range(20000, 32000)
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """One process's place in the process group, as torch.distributed's `env://` wants it."""

    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int


def find(environment: Mapping[str, str], port: int, address: Callable[[str], str]) -> Rendezvous:
    """The rendezvous of a process that submitit started locally or SLURM started.

    `port` is the one that a local job carries. On SLURM the port follows from the job id, so that every node computes
    the same without talking and two jobs that share a node differ unless their ids are 12,000 apart. `address` turns
    SLURM's node list into rank 0's address (`first_address`).

    Raises:
        RunError: outside of both, or without a needed variable.
    """
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return Rendezvous(
            rank=_number(environment, "SUBMITIT_LOCAL_GLOBALID"),
            local_rank=_number(environment, "SUBMITIT_LOCAL_LOCALID"),
            world_size=_number(environment, "SUBMITIT_LOCAL_NTASKS"),
            master_addr=LOOPBACK,
            master_port=port,
        )
    if environment.get("SUBMITIT_EXECUTOR") == "slurm":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise RunError("SLURM_JOB_NODELIST is not set: start the job through launch/slurm.py")
        return Rendezvous(
            rank=_number(environment, "SLURM_PROCID"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            world_size=_number(environment, "SLURM_NTASKS"),
            master_addr=address(nodes),
            master_port=slurm_port(_number(environment, "SLURM_JOB_ID")),
        )
    raise RunError("not inside a job: start the stage through launch/local.py or launch/slurm.py")


def slurm_port(job_id: int) -> int:
    """The port of a SLURM job: the same after a requeue, which keeps the id."""
    return PORTS[job_id % len(PORTS)]


def export(rendezvous: Rendezvous, environment: MutableMapping[str, str] = os.environ) -> None:
    """Write what torch.distributed reads. CUDA_VISIBLE_DEVICES stays as the launcher set it.

    On one machine gloo is told to use the loopback device: its default, the address of the host's name, is missing
    or a dead network on many laptops and containers. A value of the user's own stays.
    """
    environment["RANK"] = str(rendezvous.rank)
    environment["LOCAL_RANK"] = str(rendezvous.local_rank)
    environment["WORLD_SIZE"] = str(rendezvous.world_size)
    environment["MASTER_ADDR"] = rendezvous.master_addr
    environment["MASTER_PORT"] = str(rendezvous.master_port)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
    if rendezvous.master_addr == LOOPBACK and loopback:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)


def free_port() -> int:
    """A port of this machine that nothing listens on, for a local job; the submitting process chooses once.

    Drawn at random, so that two submissions at the same moment rarely take the same one.

    Raises:
        RunError: when a hundred draws found none.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port
    raise RunError(f"no free port found between {PORTS.start} and {PORTS.stop}")


def first_address(nodes: str) -> str:
    """The address of the first host of a SLURM node list such as `gpu[01-04]`.

    Node names need not resolve (measured: a rendezvous with one that does not fails only after the timeout); then
    SLURM's own NodeAddr is taken.

    Raises:
        RunError: when SLURM's `scontrol` does not answer.
    """
    host = hostnames(nodes)[0]
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", scontrol("show", "node", "-o", host))
        return found.group(1) if found else host
    return host


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise RunError(f"{name} is {environment.get(name, 'not set')!r}, a number is needed") from None
