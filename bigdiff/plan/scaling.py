"""The time of a step on any number of ranks, from a pass, the collectives and the update; nothing is run here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bigdiff.config.engine_rules import passes
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.models.ema import profiles
from bigdiff.plan.links import Fabric, seconds
from bigdiff.train.memory import Weights, own_elements
from bigdiff.train.volumes import Volume, volumes

FRACTION: Final = 0.4  # of a device's stated peak that passes of many images reach; assumed, see docs/planning.md
BANDWIDTH: Final = 0.8  # of its memory's stated rate that the update reaches; assumed
KERNEL: Final = 6e-6  # seconds for which the host is busy with an operator, torch's hooks included; assumed
# and with a gradient, by `engine.sharding`: the least of DeepSpeed's and the most of ours that was measured on a core
# of this project's machines (tests/bench/test_sharding.py); ZeRO-0 has no hooks
GRADIENT: Final = {"deepspeed": 40e-6, "overlapped": 17e-6}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast one rank computes."""

    image: float  # seconds of a forward and backward pass for each image
    fixed: float = 0.0  # seconds beside them for each pass
    floor: float = 0.0  # seconds of a pass at least: the host's, that starts the kernels
    element: float = 0.0  # seconds of the update for each element of a rank's share, averages included
    step: float = 0.0  # seconds beside all of that for each step: the loop
    backward: float = 2 / 3  # share of the pass
    overlap: bool = True  # whether collectives run beside the backward pass; gloo's do not

    def passed(self, micro: int) -> float:
        """Seconds of a pass of `micro` images."""
        return max(self.floor, self.fixed + micro * self.image)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a stage runs on."""

    pace: Pace
    fabric: Fabric
    gpu: bool = True
    half: bool = True  # bf16 over fp32 masters


def floor(stage: Stage, operators: int, tensors: int) -> float:
    """Seconds of the host in a pass of so many operators over so many trained tensors."""
    gradient = GRADIENT[stage.engine.sharding] if stage.engine.zero_stage > 0 else 0.0
    return operators * KERNEL + tensors * gradient


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step."""

    ranks: int
    micro: int
    passes: int
    compute: float  # seconds of all passes
    exposed: float  # seconds of collectives that nothing hides
    hidden: float  # seconds of collectives beside the passes
    update: float  # seconds of AdamW, casts and averages
    other: float  # seconds of the loop
    sent: float  # bytes that each rank sends

    @property
    def seconds(self) -> float:
        """In all."""
        return self.compute + self.exposed + self.update + self.other

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return self.ranks * self.micro * self.passes / self.seconds

    def efficiency(self, reference: "Step") -> float:
        """Images per second and rank, relative to those of `reference`."""
        return self.images_per_second / self.ranks / (reference.images_per_second / reference.ranks)


def fitted(stage: Stage, ranks: int) -> Stage:
    """`stage` with the largest micro-batch up to its own that divides its batch over `ranks`.

    Raises:
        UsageError: for more ranks than images, or a batch that does not divide.
    """
    total = stage.batch.total
    if total % ranks:
        raise UsageError(f"batch.total={total} of stage {stage.name} does not divide over {ranks} ranks: use a divisor")
    each = total // ranks
    micro = max(size for size in range(1, min(stage.batch.micro, each) + 1) if each % size == 0)
    return replace(stage, batch=replace(stage.batch, micro=micro))


def predict(stage: Stage, weights: Weights, ranks: int, machine: Machine) -> Step:
    """A step of `stage`, whose micro-batch fits, on `ranks` ranks.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    pace, fabric, micro = machine.pace, machine.fabric, stage.batch.micro
    done, one = passes(stage, ranks, machine.gpu), pace.passed(micro)
    found = volumes(stage, weights.sizes, ranks, machine.gpu, machine.half)
    forward, backward = one * (1 - pace.backward), one * pace.backward
    exposed = hidden = 0.0
    for when, window, times in (("forward", forward, done), ("backward", backward, done), ("first", forward, 1)):
        during = [volume for volume in found if volume.when == when]
        whole = sum(seconds(volume, ranks, fabric) for volume in during)
        shown = uncovered(during, whole / times, window, times) * times if pace.overlap else whole
        exposed, hidden = exposed + shown, hidden + whole - shown
    exposed += sum(seconds(volume, ranks, fabric) for volume in found if volume.when == "step")
    return Step(
        ranks=ranks,
        micro=micro,
        passes=done,
        compute=done * one,
        exposed=exposed,
        hidden=hidden,
        update=pace.element * own_elements(stage, weights, ranks),
        other=pace.step,
        sent=sum(volume.sent(ranks) for volume in found),
    )


def uncovered(during: Sequence[Volume], taken: float, window: float, done: int) -> float:
    """Seconds that collectives of `taken` seconds a pass, in equal buckets, add to `window` seconds of computing.

    The first bucket is full when its share of the window is over, and the next is not sent before it: with k buckets
    the pass ends after max(window + taken / k, window / k + taken).
    """
    calls = sum(volume.calls for volume in during if volume.apart == 1)  # the others follow a bucket's first one
    if not calls or not taken:
        return 0.0
    buckets = max(1, math.ceil(calls / done))
    return max(taken / buckets, taken - window * (1 - 1 / buckets))


def update_bytes(stage: Stage, half: bool) -> int:
    """Bytes of memory traffic for each element of the update.

    The gradient is cast (2 or 4 read, 4 written), its norm taken (4) and clipped (8); fused AdamW reads four vectors
    and writes three (28); the weights are cast back (4 read, 2 or 4 written); an average takes 12.
    """
    width = 2 if half else 4
    return width + 4 + 4 + 8 + 28 + 4 + width + 12 * len(profiles(stage.ema))
