"""This rank's vectors in host memory, copied at each save into the same buffers, from which a thread writes them."""

from collections.abc import Mapping, Sequence

import torch

from bigdiff.engine.partition import Partition, Piece


class HostCopy:
    """fp32 [partition.length] per vector, pinned where the vectors are on a GPU.

    Pinned memory is taken in powers of two, so that up to twice the share may be held (torch's host allocator).
    """

    def __init__(self, partition: Partition, device: torch.device, names: Sequence[str]) -> None:
        self._partition, self._device = partition, device
        self._padding = gaps(partition.pieces, partition.length)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        length, pinned = partition.length, self._stream is not None
        self._buffers = {name: torch.empty(length, dtype=torch.float32, pin_memory=pinned) for name in names}
        for buffer in self._buffers.values():
            buffer.zero_()  # the memory is taken now, not within the first save

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Copy `tensors`, each aligned with the masters. Nobody may be reading the former copy.

        On a GPU this returns before the copies are made: they run on a stream of their own, and what the device does
        next waits for them, so that neither an update nor the allocator can touch what is being copied.
        """
        assert list(tensors) == list(self._buffers), f"{list(tensors)} were not announced: {list(self._buffers)}"
        if self._stream is None:
            self._copy(tensors)
            return
        main = torch.cuda.current_stream(self._device)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            began.record(self._stream)
            self._copy(tensors)
            ended.record(self._stream)
        main.wait_event(ended)
        self._events = began, ended

    def ready(self) -> tuple[dict[str, torch.Tensor], float]:
        """The copies once they are made, zero where nothing lies, and the seconds for which the device waited.

        Called by the thread that writes.
        """
        seconds = 0.0
        if self._events is not None:
            began, ended = self._events
            ended.synchronize()
            seconds = began.elapsed_time(ended) / 1000
        for buffer in self._buffers.values():
            for low, high in self._padding:
                buffer[low:high] = (
                    0  # what the engine has there is not always set, and the same run gives the same bytes
                )
        return self._buffers, seconds

    def _copy(self, tensors: Mapping[str, Sequence[torch.Tensor]]) -> None:
        for name, parts in tensors.items():
            for mine, part in zip(self._partition.split(self._buffers[name]), parts, strict=True):
                mine.copy_(part.detach().reshape(-1), non_blocking=True)


def gaps(pieces: Sequence[Piece], length: int) -> list[tuple[int, int]]:
    """The ranges of a local vector that no piece covers: its padding."""
    found, at = [], 0
    for piece in sorted(pieces, key=lambda piece: piece.local):
        if at < piece.local:
            found.append((at, piece.local))
        at = piece.local + piece.length
    return [*found, (at, length)] if at < length else found
