"""How long this process stands in the engine's collectives: what is sent, and the wait for those that send later."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from deepspeed.comm import comm

from bigdiff.runtime.clock import Clock

# those that ZeRO 0 to 2 call and that return when the result may be used; ZeRO-3's come back at once, with a handle
_CALLS: Final = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


class Collectives:
    """Adds up their time: on a GPU that of the stream that calls."""

    def __init__(self, device: torch.device) -> None:
        self._clock = Clock(device)
        self._watches = False

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
        return self._clock.take()

    def _timed(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:  # noqa: ANN401 (DeepSpeed's)
        with self._clock.running():
            return call(*given, **named)
