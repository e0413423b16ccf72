"""ZeRO through DeepSpeed: configuration, one step, and this rank's share of weights and optimizer state."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from bigdiff.config.errors import RunError
from bigdiff.config.schema import Stage, accumulation
from bigdiff.engine import optim
from bigdiff.engine.partition import Partition, Piece, dense, named, owned
from bigdiff.runtime.world import World


def bf16(stage: Stage, device: torch.device) -> bool:
    """Whether the network computes in bf16 over fp32 masters; on CPU bf16 is 2.6 times slower than fp32."""
    if stage.engine.precision == "auto":
        return device.type == "cuda"
    return stage.engine.precision == "bf16"


def configuration(stage: Stage, world_size: int, half: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of `stage`.

    fp32 accumulation switches ZeRO-1 to another optimizer class with a full gradient buffer, so it is asked for at
    stage 2 alone. `overlap_comm` and buckets below the library's 5e8 let reduction run beside the backward pass.
    """
    steps = accumulation(stage, world_size)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": stage.batch.micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": stage.optim.grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage.engine.zero_stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": stage.engine.bucket_elements,
            "allgather_bucket_size": stage.engine.bucket_elements,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }
    if half:
        config["bf16"] = {"enabled": True}
        if stage.engine.zero_stage == 2:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class Engine:
    """A module under ZeRO-1 or 2: loss in, step out."""

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter], stage: Stage, world: World) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.logger.setLevel(logging.WARNING)
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime", on a CPU
        self.optim, self.steps = stage.optim, stage.steps
        self.trained = trained
        self.names = {id(parameter): name for name, parameter in trained.items()}
        self.half = bf16(stage, world.device)
        self.accumulation = accumulation(stage, world.size)
        self._rank = world.rank
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optim.build(list(trained.values()), stage.optim),
            config=configuration(stage, world.size, self.half),
            dist_init_required=False,
        )
        self.module: nn.Module = self._engine.module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The module's forward pass."""
        return self._engine(*inputs)  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (a mean over this micro-batch); accumulation and ranks are averaged."""
        self._engine.backward(loss)

    def step(self, step: int) -> float:
        """Apply optimizer step `step` after the last micro-batch of it; returns the learning rate used.

        Called after every backward pass, as DeepSpeed counts accumulation itself.
        """
        rate = optim.learning_rate(self.optim, step, self.steps)
        for group in self._zero.param_groups:
            group["lr"] = rate
        self._engine.step()
        return rate

    def grad_norm(self) -> torch.Tensor:
        """Global L2 norm of the last step's gradient before clipping, a scalar tensor."""
        return torch.as_tensor(self._engine.get_global_grad_norm())

    @cached_property  # the loop asks at every step; DeepSpeed lays the weights out once
    def partition(self) -> Partition:
        """What this rank owns of the flat weights, for the EMA and the checkpoint."""
        (parameters,) = self._zero.round_robin_bit16_groups
        (offsets,) = self._zero.round_robin_bit16_offsets
        (master,) = self._zero.single_partition_of_fp32_groups
        at = {self.names[id(parameter)]: int(offset) for parameter, offset in zip(parameters, offsets, strict=True)}
        layout = dense((name, parameter.shape) for name, parameter in self.trained.items())
        low = self._rank * master.numel()
        pieces = owned(layout, [at[placed.name] for placed in layout], low, low + master.numel())
        return Partition(layout=layout, pieces=pieces, masters=(master,))

    def moments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """AdamW's `exp_avg` and `exp_avg_sq` of what this rank owns, live; zeros before the first step."""
        (master,) = self.partition.masters
        state = self._zero.optimizer.state[master]
        return {name: (state.get(name, torch.zeros_like(master)),) for name in ("exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """Put back this rank's local vectors after `updates` optimizer updates.

        `moments` None starts the optimizer afresh. The low-precision weights of all ranks
        are rebuilt from the masters, as at the end of an optimizer step.
        """
        (mine,) = self.partition.masters
        if master.shape != mine.shape:
            raise RunError(f"a slice of {tuple(master.shape)} does not fit the partition {tuple(mine.shape)}")
        mine.copy_(master)
        state = self._zero.optimizer.state
        state.pop(mine, None)
        if moments is not None and updates > 0:
            count = torch.tensor(float(updates), dtype=torch.float32, device=mine.device)
            copies = {name: moment.to(mine.device, copy=True) for name, moment in moments.items()}
            state[mine] = {"step": count, **copies}
        self._zero.update_lp_params()

    @torch.no_grad()
    def gather(self, local: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """All ranks' tensors aligned with their masters (this rank's are `local`) as named, shaped ones; collective."""
        (mine,) = local
        slices = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(slices, mine)
        everyone: list[tuple[Piece, ...]] = [()] * len(slices)
        dist.all_gather_object(everyone, self.partition.pieces)
        flat = torch.empty(self.partition.total, dtype=mine.dtype, device=mine.device)
        for pieces, other in zip(everyone, slices, strict=True):
            for piece in pieces:
                flat[piece.start : piece.start + piece.length] = other[piece.local : piece.local + piece.length]
        return named(self.partition.layout, flat)
