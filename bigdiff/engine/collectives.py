"""How long this process stands in the engine's collectives: what is sent, and the wait for those that send later.

Of ZeRO 0 to 2 a call returns when the result may be used. ZeRO-3 gathers weights ahead: those calls come back at once,
with a handle, and time is counted while the handle is waited for, not between. So what lies hidden behind the host's
own work counts nothing, and of several gatherings under way no second counts twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from deepspeed.comm import comm

from bigdiff.runtime.clock import Clock

_CALLS: Final = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


class Collectives:
    """Adds up their time: on a GPU that of the stream that calls or waits."""

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
            handle = call(*given, **named)
        return handle if handle is None else _Awaited(handle, self._clock)


class _Awaited:
    """A handle of torch.distributed whose wait is timed; DeepSpeed asks nothing else of one."""

    def __init__(self, handle: Any, clock: Clock) -> None:  # noqa: ANN401 (a Work, or a stand-in of DeepSpeed's)
        self._handle, self._clock = handle, clock

    def wait(self) -> None:
        """Until the result may be used: by the host on a CPU, by this stream on a GPU."""
        with self._clock.running():
            self._handle.wait()
