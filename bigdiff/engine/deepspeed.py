"""ZeRO through DeepSpeed: configuration, one step, and this rank's share of weights and optimizer state."""

import logging
from functools import cached_property
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from bigdiff.config.errors import RunError
from bigdiff.config.schema import Stage, accumulation
from bigdiff.engine import optim
from bigdiff.engine.partition import Partition, Placed
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
        """This rank's slice of the flat weights, for the EMA and the checkpoint."""
        (parameters,) = self._zero.round_robin_bit16_groups
        (offsets,) = self._zero.round_robin_bit16_offsets
        (master,) = self._zero.single_partition_of_fp32_groups
        layout = tuple(
            Placed(name=self.names[id(parameter)], shape=tuple(parameter.shape), offset=int(offset))
            for parameter, offset in zip(parameters, offsets, strict=True)
        )
        last = parameters[-1]
        total = layout[-1].offset + last.numel()
        return Partition(layout=layout, total=total, start=self._rank * master.numel(), master=master)

    def moments(self) -> dict[str, torch.Tensor]:
        """AdamW's `exp_avg` and `exp_avg_sq` of this rank's slice, live; zeros before the first step."""
        master = self.partition.master
        state = self._zero.optimizer.state[master]
        return {name: state.get(name, torch.zeros_like(master)) for name in ("exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor] | None, step: int) -> None:
        """Put back this rank's slice after `step` optimizer steps; `moments` None starts the optimizer afresh.

        The low-precision weights of all ranks are rebuilt from the masters, as at the end of an optimizer step.
        """
        partition = self.partition
        if master.shape != partition.master.shape:
            raise RunError(
                f"a slice of {tuple(master.shape)} does not fit the partition {tuple(partition.master.shape)}"
            )
        partition.master.copy_(master)
        state = self._zero.optimizer.state
        state.pop(partition.master, None)
        if moments is not None and step > 0:
            count = torch.tensor(float(step), dtype=torch.float32, device=partition.master.device)
            copies = {name: moment.to(partition.master.device, copy=True) for name, moment in moments.items()}
            state[partition.master] = {"step": count, **copies}
        self._zero.update_lp_params()

    @torch.no_grad()
    def gather(self, local: torch.Tensor) -> dict[str, torch.Tensor]:
        """All ranks' slices of a flat vector (this rank's is `local`) as named, shaped tensors; collective."""
        slices = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(slices, local)
        flat = torch.cat(slices)
        named: dict[str, torch.Tensor] = {}
        for placed in self.partition.layout:
            size = torch.Size(placed.shape)
            named[placed.name] = flat[placed.offset : placed.offset + size.numel()].reshape(size)
        return named
