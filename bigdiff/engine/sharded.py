"""ZeRO-1 and 2 of our own, in DeepSpeed's place: a rank steps its share of every bucket, sent beside the passes."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigdiff.config.engine_rules import bucket_of, passes, sharing
from bigdiff.config.schema import Stage
from bigdiff.engine import norms
from bigdiff.engine.buckets import cut
from bigdiff.engine.groups import formed
from bigdiff.engine.optim import Guarded
from bigdiff.engine.partition import Partition, Placed, cut_out
from bigdiff.engine.precision import bf16
from bigdiff.engine.reduction import Reduction
from bigdiff.engine.weights import Weights
from bigdiff.engine.zero import Parts, moments_of, put_moments
from bigdiff.runtime.clock import Clock
from bigdiff.runtime.watchdog import collective_timeout
from bigdiff.runtime.world import World

PART: Final = 1 << 16  # elements of a gradient whose norm a CPU takes at once


class Sharded:
    """A module, its gradients' reduction and its optimizer: what the engine asks of DeepSpeed and of a ZeRO stage.

    Gradients are those of the mean over all passes and ranks of a step. They are summed over the ranks in the weights'
    type and over the passes in fp32. As under DeepSpeed the masters begin with weights rounded to that type.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: Mapping[str, nn.Parameter],
        layout: tuple[Placed, ...],
        adam: Guarded,
        stage: Stage,
        world: World,
    ) -> None:
        self.module, self._adam, self._grad_clip = module, adam, stage.optim.grad_clip
        self._passes = passes(stage, world.size, gpu=world.device.type == "cuda")
        self._parts, self._done = self._passes * world.size, 0
        _alike(module, world.device, torch.bfloat16 if bf16(stage, world.device) else torch.float32)
        sizes = [one.size for one in layout]
        size, timeout = sharing(stage, world.size), collective_timeout(stage.engine.timeout_seconds)
        self._groups = formed(world.rank, world.size, size, timedelta(seconds=timeout))
        buckets = cut(sizes, bucket_of(stage, sum(sizes)), size)
        self.clock = Clock(world.device)  # of the collectives
        apart = stage.speed.compile != "whole"
        self._weights = Weights(trained, buckets, self._groups, self.clock, apart)
        self._weights.waited_for_by(module)
        self._master = self._weights.master
        self._master.grad = torch.zeros_like(self._master)
        self._reduction = Reduction(list(trained.values()), buckets, self._groups, self._master.grad, self.clock)
        adam.param_groups[0]["params"] = [self._master]
        self._part = self._groups.part(len(self._master))
        self.partition = Partition(
            layout=layout,
            pieces=cut_out(buckets.pieces(layout, self._groups.member), self._part),
            masters=(self._master.detach()[self._part],),
        )

    def __call__(self, *inputs: Tensor | bool) -> Tensor:
        """The module's forward pass."""
        return self.module(*inputs)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a mean over this micro-batch."""
        first = self._done == 0
        self._reduction.begin(first)
        (loss / self._parts).backward()  # type: ignore[no-untyped-call]
        self._reduction.finish(first)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the pass that is under way, or was the last, is its step's last one."""
        return self._done + 1 == self._passes

    def step(self) -> None:
        """Behind each pass: count it; behind the last one move the weights, unless the norm is not finite."""
        self._done = (self._done + 1) % self._passes
        if self._done == 0:
            self._adam.step()
            self._weights.publish(self._reduction.order[::-1])

    def settle(self) -> None:
        """Wait until the weights may be read outside the module's forward pass."""
        self._weights.settle()

    def moments(self) -> dict[str, Parts]:
        """As Zero.moments: one tensor each, or a part of one."""
        found = moments_of(self._adam.state, [self._master])
        return {name: tuple(one[self._part] for one in parts) for name, parts in found.items()}

    def restore(self, moments: dict[str, Tensor] | None, updates: int) -> None:
        """As Zero.restore; each rank gets what the other groups answer for."""
        length = len(self._master)
        own = self._master.detach()
        own.copy_(self._groups.whole(own[self._part], length))
        if moments is not None:
            moments = {name: self._groups.whole(one.to(own.device), length) for name, one in moments.items()}
        parts = None if moments is None else {name: (one,) for name, one in moments.items()}
        put_moments(self._adam.state, [self._master], parts, updates)
        self._weights.publish(self._reduction.order[::-1])

    def norm(self) -> Tensor | float:
        """As Zero.norm; clips, too."""
        gradient = self._master.grad
        assert gradient is not None
        if gradient.device.type == "cpu":  # a norm in fp64 is one of a copy there
            parts = [norms.squared([part], part.device) for part in torch.split(gradient, PART)]
            total = torch.stack(parts).sum()
        else:
            total = norms.squared([gradient], gradient.device)
        with self.clock.running():
            total = self._groups.total(total).sqrt()
        norms.scale([gradient], total, self._grad_clip)
        return total


@torch.no_grad()
def _alike(module: nn.Module, device: torch.device, kind: torch.dtype) -> None:
    """Bring the module to the device, its parameters to `kind`, and rank 0's values to all."""
    module.to(device)
    for one in module.parameters():
        if one.is_floating_point():
            one.data = one.data.to(kind)
    if dist.get_world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
