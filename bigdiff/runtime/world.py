"""Which process am I, on which device, and what do all processes agree on. The only reader of RANK and WORLD_SIZE."""

import gc
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from bigdiff.config.errors import NodeError, RunError, UsageError
from bigdiff.runtime.transfer import Results

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreed:
    """What all processes know at the end of a step, the same on each."""

    stop: bool  # one was asked to stop
    failed: bool  # the checkpoint writer of one has failed
    broken: int  # processes whose own loss is not finite
    loss: float  # mean over all processes; not finite when that of one is not
    norm: float  # of the gradient; not finite when the step moved nothing


class Asked:
    """What all processes told each other after a step, on its way; nothing waits for it until it is asked for."""

    def __init__(self, words: torch.Tensor, size: int) -> None:
        """`words` fp64 [5] are this process's: stop, failed, broken, loss and norm."""
        self._size, self._work = size, None
        if size > 1:  # gloo takes as long for one process as for two
            work = dist.all_reduce(words, async_op=True)
            if words.is_cuda:
                work.wait()  # has the stream wait, not the host
            else:
                self._work = work
        self._words = Results(words)  # on a CPU the words themselves

    def agreed(self) -> Agreed:
        """What came of it, the same on all processes; waits for the step, not for what was begun behind it."""
        if self._work is not None:
            self._work.wait()
        stops, failures, broken, total, steep = self._words.tensors()[0].tolist()
        return Agreed(
            stop=stops > 0,
            failed=failures > 0,
            broken=round(broken),
            loss=total / self._size,
            norm=steep / self._size,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among all processes of a run."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    beacon: Store | None = None  # a connection of its own to what all processes share, for another thread

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes logs, manifests and pointers."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        dist.barrier()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over all processes of a small tensor (fp32, any shape); every process gets it."""
        total = values.detach().to(self.device, torch.float32, copy=True)
        dist.all_reduce(total)
        return total / self.size

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise maximum over all processes; every process gets it."""
        most = values.detach().to(self.device, torch.float32, copy=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The float64 sum over all processes of a tensor (any shape), on this one's device; every process gets it."""
        whole = values.detach().to(self.device, torch.float64, copy=True)
        dist.all_reduce(whole)
        return whole

    def every(self, values: torch.Tensor) -> torch.Tensor:
        """The small fp32 tensor [K] of every process, by rank, on every process: [size, K]."""
        mine = values.detach().to(self.device, torch.float32)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return torch.stack(found)

    def ask(self, loss: torch.Tensor, norm: torch.Tensor, stop: bool, failed: bool) -> Asked:
        """Put together what each process knows after a step, in one small collective: see Agreed.

        `loss` is a scalar, this process's mean; the processes' shares of a step are equal. `norm` is a scalar, fp32 and
        the same on all: the mean of equal ones is exact in fp64.
        """
        mine, steepness = (one.detach().to(self.device, torch.float64) for one in (loss, norm))
        told = [torch.full_like(mine, float(one)) for one in (stop, failed)]  # filled there: nothing waits for the host
        return Asked(torch.stack((*told, (~torch.isfinite(mine)).double(), mine, steepness)), self.size)

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 (plain values of the caller's kind)
        """The `item` (plain, small) of every process, in rank order, on every process."""
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def first_does(self, work: Callable[[], Value]) -> Value:
        """What `work` gives on rank 0 (plain, small), on every process; the others do nothing.

        Raises:
            UsageError: on every process, when it raises one there.
        """
        done, complaint = None, ""
        if self.first:
            try:
                done = work()
            except UsageError as error:
                complaint = str(error)
        done, complaint = self.first_says((done, complaint))
        if complaint:
            raise UsageError(complaint)
        return cast("Value", done)

    def first_says(self, item: Any) -> Any:  # noqa: ANN401 (plain values of the caller's kind)
        """Rank 0's `item` on every process."""
        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]


def host() -> str:
    """This machine's name: that of the node where SLURM runs it, else the system's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def enter(timeout_seconds: int, gpu: bool = False) -> World:
    """Join the process group that RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Without them this is a world of one. A collective that waits longer than `timeout_seconds` fails; the watchdog
    (bigdiff.runtime.watchdog) ends a run that hangs before that, and says who is at fault. With `gpu` every process
    must have one.

    Raises:
        RunError: when only some of the variables are set.
        NodeError: on every process, for a node without its GPUs.
        UsageError: on every process, when none has a GPU.
    """
    named = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in named if name not in os.environ]
    alone = "RANK" in missing and "WORLD_SIZE" in missing  # LOCAL_RANK may remain from an earlier world of one
    if missing and not alone:
        raise RunError(f"{', '.join(missing)} not set although other process group variables are")
    rank, local_rank, size = (int(os.environ.get(name, default)) for name, default in zip(named, "001", strict=False))
    device, lacking = _device(local_rank, gpu)
    beacon = None
    if not dist.is_initialized():
        backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout_seconds)
        if alone:
            _complain({host(): lacking} if lacking else {}, 1)
            os.environ.setdefault("LOCAL_RANK", "0")  # deepspeed insists on it
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            beacon = _join(backend, timeout, lacking)
    return World(rank=rank, local_rank=local_rank, size=size, device=device, beacon=beacon)


def _device(local_rank: int, gpu: bool) -> tuple[torch.device, str]:
    """This process's device, and what is wrong with it; a GPU that cannot be had must not end one process alone."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "no CUDA device is seen" if gpu else ""
    if local_rank >= torch.cuda.device_count():
        return torch.device("cpu"), f"{torch.cuda.device_count()} CUDA devices are seen, one is needed for each process"
    device = torch.device("cuda", local_rank)
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except RuntimeError as error:
        return torch.device("cpu"), f"GPU {local_rank} does not work ({str(error).partition(chr(10))[0]})"
    return device, ""


def _join(backend: str, timeout: timedelta, lacking: str) -> Store:
    """Meet the other processes; whoever lacks a device is known to all before the group, which would fail, is made."""
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    devices = PrefixStore("devices", store)
    devices.set(str(rank), json.dumps([host(), lacking]))
    if rank == 0:
        keys = [str(one) for one in range(size)]
        devices.wait(keys)
        told = [json.loads(one) for one in devices.multi_get(keys)]
        first: dict[str, str] = {}  # complaint of each node
        for name, why in told:
            if why:
                first.setdefault(name, why)
        devices.set("all", json.dumps([first, len({name for name, _ in told})]))
    found, nodes = json.loads(devices.get("all"))
    if found:  # rank 0, whose process keeps the store, waits until all know
        devices.set(f"read/{rank}", "")
        if rank == 0:  # the others ask for nothing more: the store may be gone before an answer
            devices.wait([f"read/{one}" for one in range(size)])
    _complain(found, nodes)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout)
    # a call of one thread keeps all others from the same connection, for as long as it blocks
    return PrefixStore("beacon", store.clone())


def _complain(lacking: dict[str, str], nodes: int) -> None:
    """Refuse nodes without their devices, unless it is all of them."""
    if lacking and len(lacking) == nodes:
        name, why = next(iter(lacking.items()))
        raise UsageError(
            f"{why} on node {name}, nor a working one on any other: the cluster's gpus_per_node must be 0 to train on "
            f"CPUs, or its partition and gpus_per_node such that SLURM gives each process a GPU"
        )
    if lacking:
        raise NodeError.of(lacking)


def leave() -> None:
    """Close the process group, so that the next `enter` of this process starts afresh."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a group that a cycle keeps alive ends its threads at the interpreter's end, and may crash
