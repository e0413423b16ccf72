"""Which process am I, on which device, and what do all processes agree on. The only reader of RANK and WORLD_SIZE."""

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from bigdiff.config.errors import RunError, UsageError

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreed:
    """What all processes know at the end of a step, the same on each."""

    stop: bool  # one was asked to stop
    failed: bool  # the checkpoint writer of one has failed
    broken: int  # processes whose own loss is not finite
    loss: float  # mean over all processes; not finite when that of one is not


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

    def agree(self, loss: torch.Tensor, stop: bool, failed: bool) -> Agreed:
        """Put together what each process knows after a step, in one small collective: see Agreed.

        `loss` is a scalar, this process's mean; the processes' shares of a step are equal.
        """
        mine = loss.item()
        known = [float(stop), float(failed), float(not math.isfinite(mine)), mine]
        words = torch.tensor(known, dtype=torch.float64, device=self.device)
        dist.all_reduce(words)
        stops, failures, broken, total = words.tolist()
        return Agreed(stop=stops > 0, failed=failures > 0, broken=round(broken), loss=total / self.size)

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


def enter(timeout_seconds: int) -> World:
    """Join the process group that RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Without them this is a world of one. A collective that waits longer than `timeout_seconds` fails; the watchdog
    (bigdiff.runtime.watchdog) ends a run that hangs before that, and says who is at fault.

    Raises:
        RunError: when only some of the variables are set.
    """
    named = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in named if name not in os.environ]
    alone = "RANK" in missing and "WORLD_SIZE" in missing  # LOCAL_RANK may remain from an earlier world of one
    if missing and not alone:
        raise RunError(f"{', '.join(missing)} not set although other process group variables are")
    rank, local_rank, size = (int(os.environ.get(name, default)) for name, default in zip(named, "001", strict=False))
    device, beacon = torch.device("cpu"), None
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        beacon = _join(backend, timedelta(seconds=timeout_seconds), alone)
    return World(rank=rank, local_rank=local_rank, size=size, device=device, beacon=beacon)


def _join(backend: str, timeout: timedelta, alone: bool) -> Store | None:
    if alone:
        os.environ.setdefault("LOCAL_RANK", "0")  # deepspeed insists on it
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return None
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout)
    # a call of one thread keeps all others from the same connection, for as long as it blocks
    return PrefixStore("beacon", store.clone())


def leave() -> None:
    """Close the process group, so that the next `enter` of this process starts afresh."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a group that a cycle keeps alive ends its threads at the interpreter's end, and may crash
