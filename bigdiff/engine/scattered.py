"""ZeRO-3: every parameter is cut into one equal share per rank, padded at its end; Adam steps the shares joined."""

from collections.abc import Mapping

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import nn

from bigdiff.engine.partition import Partition, Piece, Placed, merged
from bigdiff.engine.zero import Parts, moments_of, put_moments, split_all


class Scattered:
    """Sub-groups of parameters under DeepSpeedZeroOptimizer_Stage3: one flat fp32 tensor each."""

    def __init__(
        self,
        zero: DeepSpeedZeroOptimizer_Stage3,
        layout: tuple[Placed, ...],
        trained: Mapping[str, nn.Parameter],
        rank: int,
    ) -> None:
        self._zero = zero
        self._masters: list[torch.Tensor] = zero.fp32_partitioned_groups_flat
        placed = {id(trained[one.name]): one for one in layout}
        pieces, begun = [], 0
        for master, group in zip(self._masters, zero.fp16_groups, strict=True):
            within = 0  # this sub-group's tensor
            for parameter in group:
                share, whole = int(parameter.partition_numel()), placed[id(parameter)]
                begin, end = min(rank * share, whole.size), min((rank + 1) * share, whole.size)
                if begin < end:
                    pieces.append(Piece(local=begun + within, start=whole.offset + begin, length=end - begin))
                # DeepSpeed leaves the padding as the memory was; whoever sums over a master must not meet a NaN there
                master.detach()[within + end - begin : within + share].zero_()
                within += share
            begun += within
        masters = tuple(master.detach() for master in self._masters)
        self.partition = Partition(layout=layout, pieces=tuple(merged(pieces)), masters=masters)

    def moments(self) -> dict[str, Parts]:
        """As Zero.moments: one tensor per sub-group."""
        return moments_of(self._zero.optimizer.state, self._masters)

    def restore(self, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """As Zero.restore: what is gathered of the former weights is let go, and the small, kept ones gathered anew."""
        zero = self._zero
        parts = split_all(self.partition, moments)
        put_moments(zero.optimizer.state, self._masters, parts, updates)
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def norm(self) -> torch.Tensor | float:
        """As Zero.norm; DeepSpeed itself leaves a step out whose norm is not finite, before the optimizer's."""
        return self._zero._global_grad_norm  # type: ignore[no-any-return]
