"""ZeRO, by DeepSpeed or ours: configuration, one step, and this rank's share of weights and optimizer state."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import nn

from bigdiff.config.engine_rules import bucket_of, passes
from bigdiff.config.schema import Stage, accumulation
from bigdiff.engine import optim
from bigdiff.engine.collectives import Collectives
from bigdiff.engine.flat import Flat
from bigdiff.engine.frozen import moved, set_apart
from bigdiff.engine.gather import gathered
from bigdiff.engine.partition import Partition, Placed, dense, named
from bigdiff.engine.precision import bf16, sum_in_fp32
from bigdiff.engine.replicated import ReplicatedBf16, ReplicatedFp32
from bigdiff.engine.scattered import Scattered
from bigdiff.engine.sharded import Sharded
from bigdiff.engine.waits import replaced
from bigdiff.engine.zero import Zero, put_masters
from bigdiff.runtime.clock import Clock
from bigdiff.runtime.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What an optimizer step did, the same on all ranks."""

    rate: float  # the learning rate
    # global L2 norm [] of the gradient before clipping, on the device; where it is not finite, nothing has moved:
    # weights, moments and Adam's count
    norm: torch.Tensor


def configuration(stage: Stage, world_size: int, half: bool, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration of `stage`, for so many trained elements.

    fp32 accumulation switches ZeRO-1 to another optimizer class with a full gradient buffer, so it is asked for at
    stages 2 and 3 alone. `overlap_comm` and buckets below the library's 5e8 let reduction run beside the backward pass.
    Non-finite gradients are left to optim.Guarded, which saves an all-reduce per step in bf16.
    """
    zero_stage, bucket = stage.engine.zero_stage, bucket_of(stage, elements)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": stage.batch.micro,
        "gradient_accumulation_steps": accumulation(stage, world_size),
        # at stage 0 in fp32 DeepSpeed clips without telling the norm, so ReplicatedFp32 does both
        "gradient_clipping": stage.optim.grad_clip if half or zero_stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }
    if half:
        config["bf16"] = {"enabled": True, "check_grad_overflow": False}
        if zero_stage >= 2:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class Engine:
    """A module under ZeRO 0 to 3: loss in, step out. DeepSpeed's engine, or ours where `engine.sharding` says so."""

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter], stage: Stage, world: World) -> None:
        quiet()
        self.optim, self.steps = stage.optim, stage.steps
        self.began = 0  # steps of the schedule that another run has done
        self.half = bf16(stage, world.device)
        self.accumulation = passes(stage, world.size, gpu=world.device.type == "cuda")
        if self.half and world.device.type == "cpu":
            sum_in_fp32(module)
        layout = dense((name, parameter.shape) for name, parameter in trained.items())  # stage 3 empties the shapes
        self._adam = optim.build(list(trained.values()), stage.optim)
        self._engine: Any
        self._zero: Zero
        self._clock: Collectives | Clock
        if stage.engine.sharding == "overlapped":
            ours = Sharded(module, trained, layout, self._adam, stage, world)
            self._engine, self._zero, self._clock = ours, ours, ours.clock
        else:
            self._engine, self._zero = self._theirs(module, trained, layout, stage, world)
            self._clock = Collectives(world.device)
        self.module: nn.Module = self._engine.module
        self._adam.norm = self._zero.norm
        self.partition: Partition = self._zero.partition  # for the EMA and the checkpoint

    def _theirs(
        self,
        module: nn.Module,
        trained: dict[str, nn.Parameter],
        layout: tuple[Placed, ...],
        stage: Stage,
        world: World,
    ) -> tuple[Any, Zero]:
        config = configuration(stage, world.size, self.half, sum(one.size for one in layout))
        apart = set_apart(module, trained.values()) if stage.engine.zero_stage == 3 else []
        moved(apart, world.device, torch.bfloat16 if self.half else torch.float32)
        engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=self._adam, config=config, dist_init_required=False
        )
        zero = self._behind(engine.optimizer, stage, layout, trained, world.rank)
        return engine, zero

    def _behind(
        self,
        wrapped: Any,  # noqa: ANN401 (one of DeepSpeed's)
        stage: Stage,
        layout: tuple[Placed, ...],
        trained: dict[str, nn.Parameter],
        rank: int,
    ) -> Zero:
        if stage.engine.zero_stage == 3:
            return Scattered(wrapped, layout, trained, rank)
        if stage.engine.zero_stage > 0:
            return Flat(wrapped, layout, trained, rank)
        if self.half:
            return ReplicatedBf16(wrapped, layout)
        return ReplicatedFp32(layout, list(trained.values()), self._adam.state, stage.optim.grad_clip)

    def __call__(self, *inputs: torch.Tensor | bool) -> torch.Tensor:
        """The module's forward pass."""
        return self._engine(*inputs)  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (a mean over this micro-batch); accumulation and ranks are averaged."""
        self._engine.backward(loss)

    def step(self, step: int) -> Stepped | None:
        """Apply optimizer step `step` after its last micro-batch; None after an earlier one.

        Called after every backward pass, as DeepSpeed counts accumulation itself. A gradient that is not finite on any
        rank is dropped on all: weights, moments and Adam's count stay as they are, bit for bit.
        """
        complete = self._engine.is_gradient_accumulation_boundary()
        rate = optim.learning_rate(self.optim, self.began + step, self.began + self.steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.seen = None
        self._engine.step()
        if not complete:
            return None
        # none: DeepSpeed, which at stages 0 (bf16) and 3 asks for the norm, left the step out by itself
        norm = torch.full((), math.nan) if self._adam.seen is None else self._adam.seen
        return Stepped(rate=rate, norm=norm)

    def discard(self) -> None:
        """Let go of a step's gradients after its last backward pass; weights, moments and Adam's count stay."""
        with replaced(self._adam, "norm", lambda: math.inf):
            self._engine.step()

    def settle(self) -> None:
        """Wait until the module's weights may be read, but by its forward pass, which waits by itself."""
        if isinstance(self._engine, Sharded):
            self._engine.settle()

    def communication(self) -> float:
        """Seconds in collectives since this was asked last, 0 the first time."""
        return self._clock.take()

    def moments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """AdamW's `exp_avg` and `exp_avg_sq` of what this rank owns, live; zeros before the first step."""
        return self._zero.moments()

    @torch.no_grad()
    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor] | None, updates: int) -> None:
        """Put back this rank's local vectors after `updates` optimizer updates; collective.

        `moments` None starts the optimizer afresh. The low-precision weights of all ranks
        are rebuilt from the masters, as at the end of an optimizer step.

        Raises:
            RunError: when the vectors are not as long as the partition.
        """
        put_masters(self.partition, master)
        self._zero.restore(moments, updates)

    @torch.no_grad()
    def gather(self, local: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """All ranks' tensors aligned with their masters (this rank's are `local`) as named, shaped ones; collective."""
        return named(self.partition.layout, gathered(self.partition, local))


def quiet() -> None:
    """Let DeepSpeed report warnings alone."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.logger.setLevel(logging.WARNING)
    deepspeed.logger.addFilter(_news)  # the same function is added once
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime", on a CPU


def _news(record: logging.LogRecord) -> bool:
    """All but that ZeRO has not been tested with our AdamW: tests/engine holds it against plain torch."""
    return "untested optimizer" not in record.getMessage()
