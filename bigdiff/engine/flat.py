"""ZeRO-1 and 2: all weights in one flat vector of DeepSpeed's order, of which each rank steps an equal, whole share."""

from collections.abc import Mapping

import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from bigdiff.engine import norms, waits
from bigdiff.engine.partition import Partition, Placed, owned
from bigdiff.engine.zero import Parts, moments_of, put_moments, split_all


class Flat:
    """One group of parameters under DeepSpeedZeroOptimizer; `single_partition_of_fp32_groups` is what Adam steps."""

    def __init__(
        self,
        zero: DeepSpeedZeroOptimizer,
        layout: tuple[Placed, ...],
        trained: Mapping[str, nn.Parameter],
        rank: int,
    ) -> None:
        self._zero = zero
        norms.take_over(zero)
        waits.take_over(zero)
        (parameters,), (offsets,) = zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets
        (self._master,) = zero.single_partition_of_fp32_groups
        at = {id(parameter): int(offset) for parameter, offset in zip(parameters, offsets, strict=True)}
        low = rank * self._master.numel()
        pieces = owned(layout, [at[id(trained[one.name])] for one in layout], low, low + self._master.numel())
        self.partition = Partition(layout=layout, pieces=pieces, masters=(self._master.detach(),))

    def moments(self) -> dict[str, Parts]:
        """As Zero.moments: one tensor each."""
        return moments_of(self._zero.optimizer.state, [self._master])

    def restore(self, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """As Zero.restore: cast and gathered as at the end of an optimizer step."""
        parts = split_all(self.partition, moments)
        put_moments(self._zero.optimizer.state, [self._master], parts, updates)
        self._zero.update_lp_params()

    def norm(self) -> torch.Tensor | float:
        """As Zero.norm: reduced over the ranks just before; infinite for what is not finite."""
        return self._zero._global_grad_norm  # type: ignore[no-any-return]
