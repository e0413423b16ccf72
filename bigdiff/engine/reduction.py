"""Gradients summed over the ranks, a bucket as soon as the backward pass is through with it, to each rank its share.

DeepSpeed 0.19.8 all-reduces whole buckets at ZeRO-1 and 2, twice the bytes of a reduce-scatter, and works some 0.03 ms
of a core on each gradient. Here a gradient that comes counts one down, and a bucket whose last one came is copied
together by one call and sent. A collective has to be begun in the same order on all ranks: rank 0 tells after the first
pass in which order its buckets were full, and a bucket that is full before its turn waits for it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigdiff.config.errors import RunError
from bigdiff.engine.buckets import Buckets
from bigdiff.engine.groups import Groups
from bigdiff.runtime.clock import Clock


class Reduction:
    """The gradients of one process; `own`, fp32 [buckets.own], gets this rank's share of their sum.

    With several groups of ranks a share is first summed within each, then between those that have the same one.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], buckets: Buckets, groups: Groups, own: Tensor, clock: Clock
    ) -> None:
        kind, device = parameters[0].dtype, parameters[0].device
        self._buckets, self._groups, self._clock, self.own = buckets, groups, clock, own
        # a bucket's second collective waits for its first one here, beside the backward pass
        chained = groups.count > 1 and device.type == "cuda"
        self._side = torch.cuda.Stream(device) if chained else None  # type: ignore[no-untyped-call]
        self._parameters = [[parameters[number] for number in one.parameters] for one in buckets.buckets]
        flat = torch.zeros(buckets.total, dtype=kind, device=device)
        self._flat = [flat[buckets.whole(one)] for one in buckets.buckets]
        self._views = [
            [flat[begin : begin + one.numel()].view_as(one) for begin, one in zip(bucket.offsets, some, strict=True)]
            for bucket, some in zip(buckets.buckets, self._parameters, strict=True)
        ]
        # what the first pass of a step in fp32 needs none of, as it goes to `own` at once
        self._share = torch.zeros_like(own, dtype=kind)
        self._order: tuple[int, ...] = ()  # none: not known before a pass was seen
        self._seen: set[int] = set()  # parameters, in this pass
        self._left: list[int] = []  # parameters of each bucket that did not come yet
        self._full: list[int] = []  # buckets, in the order in which they were
        self._sent: dict[int, dist.Work | None] = {}  # in the order in which they were; none where nothing is sent
        self._into = own
        for number, bucket in enumerate(buckets.buckets):
            for parameter in bucket.parameters:
                hook = partial(self._came, number, parameter)
                parameters[parameter].register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def order(self) -> Sequence[int]:
        """In which order the buckets are sent: from the network's end to its beginning, as far as is known."""
        return self._order or range(len(self._buckets.buckets))[::-1]

    def begin(self, first: bool) -> None:
        """A backward pass begins, the first of a step or one that is added to it."""
        self._seen.clear()
        self._left = [len(one.parameters) for one in self._buckets.buckets]
        self._full.clear()
        self._sent.clear()
        self._into = self.own if first and self._share.dtype == self.own.dtype else self._share

    def finish(self, first: bool) -> None:
        """The pass is over: `own` has, or is added, this rank's share of the sum over the ranks.

        Parameters that took no part have a gradient of 0. A GPU's host does not wait.
        """
        for number in self.order:
            if number not in self._sent:
                self._send(number)
        with self._clock.running():
            self._wait()
            if self._groups.count > 1 and self._side is None:  # a CPU's host would have waited within the pass
                self._sent = {number: self._between(number) for number in self._sent}
                self._wait()
        if self._into is not self.own:
            (self.own.copy_ if first else self.own.add_)(self._share)
        if not self._order:
            self._order = tuple(self._agreed())

    def _wait(self) -> None:
        for work in self._sent.values():
            if work is not None:
                work.wait()

    def _agreed(self) -> list[int]:
        told = [self._full + [number for number in self.order if number not in self._full]]
        if self._groups.size * self._groups.count > 1:
            dist.broadcast_object_list(told, src=0)
        return told[0]

    def _came(self, bucket: int, parameter: int, _: Tensor) -> None:
        if parameter in self._seen:
            raise RunError(f"gradient {parameter} came twice in one backward pass: {TWICE}")
        self._seen.add(parameter)
        self._left[bucket] -= 1
        if self._left[bucket] == 0:
            self._full.append(bucket)
            for number in self.order[len(self._sent) :]:
                if self._left[number] > 0:
                    break
                self._send(number)

    @torch.no_grad()
    def _send(self, number: int) -> None:
        flat, views, parameters = self._flat[number], self._views[number], self._parameters[number]
        gradients = [one.grad for one in parameters]
        for view, gradient in zip(views, gradients, strict=True):
            if gradient is None:
                view.zero_()
        there = [(view, one) for view, one in zip(views, gradients, strict=True) if one is not None]
        if there:
            torch._foreach_copy_([view for view, _ in there], [one for _, one in there])
        for one in parameters:
            one.grad = None
        if self._groups.size == 1:
            self._target(number).copy_(flat)
            work = None
        else:
            work = dist.reduce_scatter_tensor(self._target(number), flat, group=self._groups.inside, async_op=True)
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                if work is not None:
                    work.wait()
                work = self._between(number)
        self._sent[number] = work

    def _target(self, number: int) -> Tensor:
        bucket = self._buckets.buckets[number]
        return self._into[bucket.own : bucket.own + bucket.share]

    def _between(self, number: int) -> dist.Work | None:
        return dist.all_reduce(self._target(number), group=self._groups.between, async_op=True)


TWICE: Final = "a network whose parameters are reached by several backward passes needs engine.sharding=deepspeed"
