"""engine.gradient_checkpointing=auto: the units of the UNet that are recomputed, by the memory of the devices.

The trainer and the planner choose by the same function of the same figures: the stage, the number of ranks, and the
memory. So that they agree on it, a device of the table counts with what its maker states, and not with what its driver
finds.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from bigdiff.config.engine_rules import AUTO, in_bf16
from bigdiff.config.schema import Stage
from bigdiff.models import checkpointing, recomputing
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.network import network
from bigdiff.models.recomputing import Ledger
from bigdiff.runtime import devices
from bigdiff.runtime.world import World
from bigdiff.train.memory import RESERVED, USABLE, Ranks, Weights, room


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What the choice rests on beside the memory."""

    ledger: Ledger
    weights: Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What is recomputed of a stage's network; of an image, unless it says otherwise."""

    names: tuple[str, ...] = ()  # of the units
    told: tuple[str, ...] = ()  # the same, folded
    units: int = 0  # that there are
    less: int = 0  # bytes at most that it saves
    peak: int = 0  # bytes of activations at most
    flops: int = 0  # computed a second time
    needed: float = 0.0  # bytes of a device in a pass of a micro-batch
    usable: float = 0.0  # bytes of the smallest device; 0: not known
    fits: bool = True

    @property
    def how(self) -> bool | str:
        """The same as a setting of engine.gradient_checkpointing."""
        return len(self.names) == self.units or ",".join(self.told) if self.names else False

    def line(self, flops: int) -> str:
        """For a person; `flops` are those that an image needs."""
        begin = f"engine.gradient_checkpointing={AUTO}"
        if not self.usable:
            return f"{begin} recomputes nothing, as no limit of memory is known: engine.memory_gb states one"
        of = f"a pass needs {self.needed / 1e9:,.2f} of {self.usable / 1e9:,.2f} usable GB"
        if not self.names:
            return f"{begin} recomputes nothing: {of}"
        which = "all units" if len(self.names) == self.units else ", ".join(self.told)
        took = f"saves {self.less / 1e6:,.1f} MB an image and costs {self.flops / flops:.1%} more FLOPs"
        doubt = "" if self.fits else "; it may not fit: lower batch.micro, or raise engine.zero_stage"
        return f"{begin} recomputes {which} ({len(self.names)} of {self.units}), which {took}: {of}{doubt}"


def counted(stage: Stage, half: bool) -> Counted:
    """Of `stage`, in bf16 or fp32; a few seconds for SD's network.

    Raises:
        UsageError: as `bigdiff.models.network.network`.
    """
    found = network(switched(stage, False))
    return Counted(weights=Weights(sizes=found.sizes, frozen=found.frozen), ledger=recomputing.measured(found, half))


def choose(stage: Stage, on: Ranks, known: Counted) -> Chosen:
    """The units whose recomputation takes the fewest FLOPs such that a micro-batch of `stage` fits; pure.

    All of them where that is not enough; none where the memory is not known.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    ledger = known.ledger
    if not on.memory:
        return Chosen(units=len(ledger.units), peak=ledger.peak)
    left, micro, usable = _left(stage, on, known), stage.batch.micro, max(USABLE * on.memory - RESERVED, 1.0)
    found = recomputing.cheapest(ledger.units, ledger.peak - left / micro)
    names = tuple(one.name for one in ledger.units) if found is None else found
    peak = ledger.most(names)
    return Chosen(
        names=names,
        told=checkpointing.folded(names, tuple(one.name for one in ledger.units)),
        units=len(ledger.units),
        less=ledger.peak - peak,
        peak=peak,
        flops=ledger.again(names),
        needed=usable - left + micro * peak,
        usable=usable,
        fits=found is not None,
    )


def largest(stage: Stage, on: Ranks, known: Counted) -> int:
    """Samples of the largest micro-batch that fits, with all units recomputed; 0: the state alone does not fit.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    ledger = known.ledger
    return max(0, int(_left(stage, on, known) // ledger.most([one.name for one in ledger.units])))


def _left(stage: Stage, on: Ranks, known: Counted) -> float:
    """Bytes for activations, beside which a pass has the gradient of one weight at a time."""
    return room(stage, known.weights, on) - (2 if on.half else 4) * max(known.weights.sizes)


def switched(stage: Stage, how: bool | str) -> Stage:
    """`stage` with `how` in place of auto."""
    return replace(stage, engine=replace(stage.engine, gradient_checkpointing=how, memory_gb=0.0))


def settle(stage: Stage, module: nn.Module, world: World) -> Chosen | None:
    """With auto choose and switch the units on; None otherwise. All processes take the smallest memory. Collective.

    Raises:
        UsageError: as `counted`.
    """
    if stage.engine.gradient_checkpointing != AUTO or not isinstance(module, Denoiser):
        return None
    gpu, memory = world.device.type == "cuda", min(world.gather(limit(stage, world.device)))
    on = Ranks(count=world.size, gpu=gpu, half=in_bf16(stage, gpu), memory=memory)
    chosen = world.first_does(lambda: choose(stage, on, counted(stage, on.half))) if memory else Chosen()
    checkpointing.recompute(module.unet, chosen.names)
    return chosen


def limit(stage: Stage, device: torch.device) -> float:
    """Bytes that the stage may use of `device`; 0: not known, as of a CPU for which none are stated."""
    stated = stage.engine.memory_gb * 1e9
    if device.type != "cuda":
        return stated
    own = float(torch.cuda.get_device_properties(device).total_memory)
    row = devices.called(torch.cuda.get_device_name(device))
    return min(own, stated or (row.memory if row else own))
