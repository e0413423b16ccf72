"""Before a job trains: does every node work, as fast as its peers, on the same software, data and shared folder.

Seconds on a sound cluster. What is wrong with a node is said of that node, so that the job can start again without it.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from bigdiff.config.cluster import Preflight
from bigdiff.config.errors import NodeError, RunError, UsageError
from bigdiff.config.schema import Data, Stage
from bigdiff.runtime import peers, rates
from bigdiff.runtime.files import write_bytes, write_json
from bigdiff.runtime.peers import Fault, Reading
from bigdiff.runtime.versions import commit, versions
from bigdiff.runtime.world import World, host
from bigdiff.train import data as stream
from bigdiff.train.resuming import warn

RECORD: Final = "preflight.json"  # in the run's folder of logs: what the newest start found
SEEN_SECONDS: Final = 30.0  # until a file must be seen on all nodes: network file systems remember its absence
_PREFIX: Final = "preflight-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What a start looks at before it trains."""

    gpu: bool = False  # every process must have one
    limits: Preflight = field(default_factory=Preflight)
    endured: tuple[str, ...] = ()  # nodes that may be slow: the job was started again for them and got no others


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What all processes found, the same on each."""

    readings: tuple[Reading, ...]
    all_reduce: float  # bytes/s of the slowest process; 0 where it was not tried
    sums: bool  # whether all-reduce adds up
    seconds: float

    @property
    def line(self) -> str:
        """For a person."""
        nodes = len({one.host for one in self.readings})
        parts = [
            f"preflight of {len(self.readings)} processes on {nodes} {'node' if nodes == 1 else 'nodes'} in "
            f"{self.seconds:.1f} s: multiply {_span([one.matmul / 1e12 for one in self.readings])} TFLOP/s",
            f"copy {_span([one.copy / 1e9 for one in self.readings])} GB/s",
        ]
        if len(self.readings) > 1:
            parts += [
                f"all-reduce {self.all_reduce / 1e9:.3g} GB/s",
                f"exchange {_span([one.link / 1e9 for one in self.readings])} GB/s",
                f"clocks within {max(abs(one.clock) for one in self.readings) * 1e3:.0f} ms",
            ]
        return ", ".join(parts)


def run(stage: Stage, check: Check, logs: Path, world: World, say: Callable[[str], None]) -> None:
    """Look at all nodes, write down what was found, and say it in a line; collective.

    Raises:
        NodeError: on all processes, for nodes that are broken, or slower than `check.limits.slow`.
        RunError, UsageError: on all processes, for what is wrong on all nodes.
    """
    found = look(stage, logs, world)
    faults: tuple[Fault, ...] = world.first_says(_judged(found, check, logs) if world.first else None)
    hosts = {one.host for one in found.readings}
    broken = {one.host: one.why for one in faults if not one.slow}
    if broken and set(broken) == hosts:
        raise RunError(f"the preflight fails on all nodes, so it is none of a node's; {NodeError.of(broken)}")
    if not found.sums:
        raise RunError(f"all-reduce over {world.size} processes does not add up: the network or a GPU corrupts data")
    slow = {one.host: one.why for one in faults if one.slow}
    put_up = {one: why for one, why in slow.items() if one in check.endured or len(hosts) == 1}
    warnings = [peers.ahead(found.readings, check.limits.clock_seconds)]
    warnings += [f"{NodeError.of(put_up)}; there is no other for it, so the job goes on"] if put_up else []
    for line in filter(None, warnings if world.first else []):
        warn(line)
    refused = broken | {one: why for one, why in slow.items() if one not in put_up}
    if refused:
        raise NodeError.of(refused)
    say(found.line)


def look(stage: Stage, logs: Path, world: World) -> Found:
    """The readings of all processes; collective.

    Raises:
        UsageError: on all processes, when no node can open the data.
    """
    began = time.monotonic()
    hosts = world.gather(host())
    leaders = sorted({hosts.index(one) for one in hosts})  # the first process of a node looks at what its node shares
    shared = _shared(logs, world, leaders)
    nodes = world.gather(_node(stage, hosts.count(hosts[world.rank])) if world.rank in leaders else None)
    complaints = [nodes[one].data for one in leaders]
    if all(complaints):
        raise UsageError(complaints[0])
    leader = hosts.index(hosts[world.rank])
    mine = {"rank": world.rank, "host": host(), "versions": nodes[leader].versions, **_device(world)}
    mine["wrong"] = mine.get("wrong") or shared.get(leader, "") or nodes[leader].data
    bus, sums = 0.0, True
    if world.size > 1 and not any(world.gather(bool(mine["wrong"]))):
        bus, sums = rates.all_reduce(world)
        mine |= {"link": rates.links(world, peers.partners(hosts)), "clock": rates.clock(world)}
    every = world.gather(mine)
    buses, added, seconds = zip(*world.gather((bus, sums, time.monotonic() - began)), strict=True)
    return Found(
        readings=tuple(Reading(**one) for one in every),
        all_reduce=min(buses),
        sums=all(added),
        seconds=max(seconds),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """What the processes of a node have in common."""

    data: str  # what is wrong with the stage's sets there, or with keeping them in memory; "" where nothing is
    versions: dict[str, str]


def _node(stage: Stage, processes: int) -> _Node:
    seen, complaint = "", ""
    try:
        fit_memory(stage.data, processes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        with stream.opened(stage.data) as sets:
            seen = stream.fingerprint(sets)
    except (UsageError, RunError) as error:
        complaint = str(error)
    return _Node(data=complaint, versions={**versions(), "commit": commit(), "the data's manifest": seen[:12]})


def fit_memory(data: Data, processes: int, memory: float) -> None:
    """Raise a UsageError where `processes` of a node may keep more samples than its `memory` holds, in bytes."""
    kept = processes * data.memory_gb
    if kept * 1e9 > memory:
        raise UsageError(
            f"data.memory_gb={data.memory_gb:g} for each of {processes} processes is {kept:g} GB, and the node has "
            f"{memory / 1e9:.1f} GB of memory: lower it"
        )


def _shared(logs: Path, world: World, leaders: Sequence[int]) -> dict[int, str]:
    """By each node's first rank what is wrong with its view of the run's folder; collective.

    Each writes a file there, and looks for those of the others.
    """
    mark = world.first_says(secrets.token_hex(8))
    mine, complaint, unseen = logs / f"{_PREFIX}{mark}-{world.rank}", "", list[int]()
    try:
        if world.rank in leaders:
            logs.mkdir(parents=True, exist_ok=True)
            write_bytes(mine, b"")
    except OSError as error:
        complaint = f"cannot write to {logs} ({error.strerror})"
    complaints = world.gather(complaint)
    written = [rank for rank in leaders if not complaints[rank]]
    if world.rank in written:
        unseen = _unseen(logs, {f"{_PREFIX}{mark}-{rank}": rank for rank in written})
    told = world.gather(unseen)
    if world.rank in written:
        mine.unlink()
    seen = {rank: told[rank] for rank in written}
    return {rank: complaints[rank] or peers.apart(rank, seen) for rank in leaders}


def _unseen(folder: Path, wanted: Mapping[str, int]) -> list[int]:
    """Ranks whose files do not appear in time."""
    end = time.monotonic() + SEEN_SECONDS
    while True:
        there = set(os.listdir(folder))
        missing = [rank for name, rank in wanted.items() if name not in there]
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(0.2)


def _device(world: World) -> dict[str, Any]:
    """Of a reading; what a broken GPU answers must not end one process alone."""
    cuda = world.device.type == "cuda"
    name = torch.cuda.get_device_name(world.device) if cuda else "cpu"
    try:
        free = rates.free(world.device)  # before the buffers of the measurements
        matmul, product = rates.matmul(world.device)
        return {"device": name, "free": free, "matmul": matmul, "product": product, "copy": rates.copy(world.device)}
    except RuntimeError as error:
        return {"device": name, "wrong": f"fails on {name}: {str(error).partition(chr(10))[0]}"}


def _judged(found: Found, check: Check, logs: Path) -> tuple[Fault, ...]:
    """The faults, once they and all readings are in the run's folder."""
    faults = peers.judge(found.readings, check.limits.slow)
    content = {"time": round(time.time(), 3), "faults": [asdict(one) for one in faults], **asdict(found)}
    write_json(logs / RECORD, content)
    return faults


def _span(values: Sequence[float]) -> str:
    """From the least to the most, or the one."""
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return least if least == most else f"{least} to {most}"
