"""How long this process stands in the engine's collectives: what is sent, and the wait for those that send later."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from deepspeed.comm import comm

# those that ZeRO 0 to 2 call and that return when the result may be used; ZeRO-3's come back at once, with a handle
_CALLS: Final = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


class Collectives:
    """Adds up their time without a wait of its own: on a GPU between two events of the stream that calls."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._watches = False
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _watch(self) -> None:
        """Count the calls of DeepSpeed's backend from now on, in place of who counted them before."""
        self._watches = True
        backend = comm.cdb
        assert backend is not None, "deepspeed.initialize makes it"
        for name in _CALLS:
            setattr(backend, name, partial(self._timed, getattr(type(backend), name).__get__(backend)))

    def take(self) -> float:
        """Seconds since the last time, 0 the first time; on a GPU it waits for the last collective."""
        if not self._watches:
            self._watch()
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
        taken = self._seconds
        self._seconds, self._events = 0.0, []
        return taken

    def _timed(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:  # noqa: ANN401 (DeepSpeed's)
        with self._clock():
            return call(*given, **named)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        if not self._gpu:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        yield
        last.record()
        self._events.append((first, last))
