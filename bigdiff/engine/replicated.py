"""ZeRO-0: every rank has and steps all weights, and answers for an even share of them.

In fp32 Adam steps the module's own parameters and DeepSpeed knows no norm. In bf16 it steps fp32 copies that
FP16_UnfusedOptimizer keeps.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from bigdiff.engine.gather import gathered
from bigdiff.engine.partition import Partition, Placed, named, owned
from bigdiff.engine.zero import MOMENTS, State, moments_of, put_moments


class Replicated:
    """`stepped` (in the order of the layout) are the fp32 tensors that Adam steps, `state` its state."""

    def __init__(self, layout: tuple[Placed, ...], stepped: Sequence[torch.Tensor], state: State) -> None:
        self._stepped, self._state = list(stepped), state
        total = sum(one.size for one in layout)
        self._low, self._high = (
            total * part // dist.get_world_size() for part in (dist.get_rank(), dist.get_rank() + 1)
        )
        pieces = owned(layout, [one.offset for one in layout], self._low, self._high)
        self._layout = layout
        self.partition = Partition(layout=layout, pieces=pieces, masters=self._mine(self._stepped))

    def _mine(self, whole: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """This rank's share of tensors in the order of the layout, as views."""
        begins = [(max(self._low - one.offset, 0), min(self._high - one.offset, one.size)) for one in self._layout]
        return tuple(
            one.detach().view(-1)[begin:end] for one, (begin, end) in zip(whole, begins, strict=True) if begin < end
        )

    def moments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """As Zero.moments: views of an even share."""
        return {name: self._mine(whole) for name, whole in moments_of(self._state, self._stepped).items()}

    def restore(self, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """As Zero.restore: each rank gets the shares of all."""
        self._fill(self._stepped, self.partition.masters)
        whole = None
        if moments is not None:
            whole = {name: [torch.empty_like(one, requires_grad=False) for one in self._stepped] for name in MOMENTS}
            for name, tensors in whole.items():
                self._fill(tensors, self.partition.split(moments[name].to(tensors[0].device)))
        put_moments(self._state, self._stepped, whole, updates)

    def _fill(self, whole: Sequence[torch.Tensor], local: Sequence[torch.Tensor]) -> None:
        for one, full in zip(whole, named(self._layout, gathered(self.partition, local)).values(), strict=True):
            one.copy_(full)


class ReplicatedFp32(Replicated):
    """Stage 0 in fp32, with the norm and the clipping that DeepSpeed leaves to us."""

    def __init__(
        self, layout: tuple[Placed, ...], parameters: Sequence[nn.Parameter], state: State, grad_clip: float
    ) -> None:
        super().__init__(layout, parameters, state)
        self._grad_clip = grad_clip

    def norm(self) -> torch.Tensor | float:
        """As Zero.norm: DeepSpeed has averaged the gradients over the ranks, so each computes the same; clips them."""
        norm = torch.nn.utils.get_total_norm([one.grad for one in self._stepped if one.grad is not None])
        if self._grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._stepped, self._grad_clip, norm)
        return norm


class ReplicatedBf16(Replicated):
    """Stage 0 in bf16."""

    def __init__(self, zero: FP16_UnfusedOptimizer, layout: tuple[Placed, ...]) -> None:
        self._zero = zero
        ((*masters,),) = zero.fp32_groups
        super().__init__(layout, masters, zero.optimizer.state)

    def restore(self, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """As Zero.restore, and every rank casts its own weights."""
        super().restore(moments, updates)
        (parameters,) = self._zero.fp16_groups
        for parameter, master in zip(parameters, self._stepped, strict=True):
            parameter.detach().copy_(master.detach())

    def norm(self) -> torch.Tensor | float:
        """As Zero.norm; DeepSpeed itself leaves a step out whose norm is not finite, before the optimizer's."""
        return self._zero._global_grad_norm  # type: ignore[no-any-return]
