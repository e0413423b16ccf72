"""To a GPU and back while it works on something else; on a CPU all of it is there at once.

A host that fetches each result before it starts the next batch leaves the GPU idle meanwhile. So a batch goes there on
a stream of its own, its results come back behind an event, and small work that the host waits for has a stream that
does not queue behind the large batch in flight.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

FIRST = -1  # priority of a stream: its kernels are taken before those of priority 0


class Results:
    """Tensors on their way to the host, behind what computes them."""

    def __init__(self, *tensors: Tensor) -> None:
        """Begin to copy them, into pinned memory that torch keeps for the next ones."""
        self._tensors = [one.contiguous().to("cpu", non_blocking=True) for one in tensors]
        self._done: torch.cuda.Event | None = None
        if any(one.device.type == "cuda" for one in tensors):
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # leaves its core to decoders
            self._done.record()

    def tensors(self) -> list[Tensor]:
        """On the host, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def there(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, best from pinned memory, on `device`: copied while what was started there before still runs."""
    if device.type != "cuda":
        return tensor.to(device)
    side = _stream(device, 0)
    with torch.cuda.stream(side):
        moved = tensor.to(device, non_blocking=True)
    here = torch.cuda.current_stream(device)
    here.wait_stream(side)
    moved.record_stream(here)  # the allocator must not give its memory away while this stream still reads it
    return moved


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Small work whose results the host takes at once: it does not queue behind a batch that was started before."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream(device, FIRST)):
        yield


def settled(device: torch.device) -> None:
    """Wait until what was started on `device` is done: weights that were moved there are then there for all streams."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def _stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
