"""Batches on the device that computes: copied on a stream of their own while the step before is still computing."""

from collections.abc import Generator, Sequence
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """A micro-batch, of latents or of images."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that `to` moves."""

    def to(self, device: torch.device) -> Self:
        """The same on another device, asynchronous from pinned memory."""


Moved = TypeVar("Moved", bound=Movable)


def on_device(steps: Generator[list[Moved], None, None], device: torch.device) -> Generator[list[Moved], None, None]:
    """The same batches on `device`, one step ahead where that is a CUDA device. Closing it closes `steps`."""
    try:
        if device.type != "cuda":
            yield from steps
        else:
            yield from _copied(steps, device)
    finally:
        steps.close()


def _copied(steps: Generator[list[Moved], None, None], device: torch.device) -> Generator[list[Moved], None, None]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    micros = next(steps, None)
    ahead = None if micros is None else _copy(micros, device, side)
    while ahead is not None:
        batches, done = ahead
        done.synchronize()  # the next line fills the pinned buffer again; this copy was issued a whole step ago
        micros = next(steps, None)
        ahead = None if micros is None else _copy(micros, device, side)
        for batch in batches:  # the allocator must not give their memory away while this stream still reads it
            for tensor in batch.tensors:
                tensor.record_stream(torch.cuda.current_stream(device))
        yield batches


def _copy(
    micros: Sequence[Moved], device: torch.device, side: torch.cuda.Stream
) -> tuple[list[Moved], torch.cuda.Event]:
    with torch.cuda.stream(side):
        copied = [micro.to(device) for micro in micros]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(side)
    return copied, done
