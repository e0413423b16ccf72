"""Bytes that each rank holds, part by part, at each ZeRO stage of DeepSpeed 0.19.8 as the engine configures it.

What lives between two steps is exact (tests/train/test_memory.py sums the tensors of the running engine); what comes
and goes within one is modelled after its buffers, and held against the allocator's trace there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bigdiff.config.engine_rules import bucket_of, passes, sharing
from bigdiff.config.schema import Stage
from bigdiff.models.activations import Activations
from bigdiff.models.ema import profiles
from bigdiff.train.volumes import PERSISTENT, PREFETCH, REUSE, buckets, refetched, share, shares

Span = Literal["always", "pass", "step"]  # between steps, too; in a forward and backward pass; in the optimizer's step
# Of a device's memory: the CUDA context, NCCL's channels and what the allocator cannot use. Assumed, not measured.
RESERVED: Final = 2.0e9
USABLE: Final = 0.95
GLOO: Final = "gloo's copies, at most"  # of what it sends and gathers, on a CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One kind of tensor on one rank."""

    name: str
    span: Span
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What of the weights counts for the memory."""

    sizes: tuple[int, ...]  # elements of each trained parameter
    frozen: int  # elements beside them

    @property
    def total(self) -> int:
        """Trained elements."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """How many processes there are, and what each computes on."""

    count: int
    gpu: bool
    half: bool  # bf16 over fp32 masters
    memory: float  # bytes of each one's device; 0: not known


def state(stage: Stage, weights: Weights, ranks: int, half: bool) -> tuple[Part, ...]:
    """What a rank holds between steps."""
    width, zero_stage, total = 2 if half else 4, stage.engine.zero_stage, weights.total
    own = own_elements(stage, weights, ranks)
    averaged, whole = own, total
    beside: list[tuple[str, int]] = []
    if stage.engine.sharding == "overlapped":  # each group answers for a part of the averages; there are gaps
        group = sharing(stage, ranks)
        averaged, whole = math.ceil(own / (ranks // group)), own * group
        beside = [("gradients to be sent", width * whole), ("gradients", (4 + width) * own)]
    elif zero_stage == 0:
        averaged = total // ranks
    elif zero_stage == 3:
        whole = own
        small = shares([size for size in weights.sizes if size < PERSISTENT], ranks) * ranks if ranks > 1 else 0
        bucket = width * bucket_of(stage, total)
        beside = [("small weights, whole", width * small), ("gradients", 4 * own), ("bucket", bucket)]
    parts = [
        ("weights", width * whole),
        ("frozen weights", width * weights.frozen),
        ("masters", 4 * own if zero_stage > 0 or half else 0),  # stage 0 in fp32 steps the weights themselves
        ("moments", 8 * own),
        ("averages", 4 * len(profiles(stage.ema)) * averaged),
        *beside,
    ]
    return tuple(Part(name=name, span="always", bytes=size) for name, size in parts if size)


def transient(
    stage: Stage, weights: Weights, ranks: int, half: bool, gpu: bool, activations: Activations
) -> tuple[Part, ...]:
    """What comes and goes within a step of micro-batches of the stage's size.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    width, zero_stage, total = 2 if half else 4, stage.engine.zero_stage, weights.total
    own, done = own_elements(stage, weights, ranks), passes(stage, ranks, gpu)
    bucket = bucket_of(stage, total)
    parts: list[tuple[str, Span, int]] = [("activations", "pass", stage.batch.micro * activations.peak)]
    if stage.engine.sharding == "overlapped":
        # a bucket's, until its last one comes; the rest of the vector waits where it is sent from
        parts += [("gradients of a bucket", "pass", width * min(max(bucket, *weights.sizes), total))]
        if not gpu:
            parts += [(GLOO, "pass", width * (total + own) if sharing(stage, ranks) > 1 else 0)]
            parts += [("gradients, cast", "pass", 4 * own if half and done > 1 else 0)]
    elif zero_stage == 0:
        # in bf16 fp32 copies for Adam; in fp32 the flat bucket of the reduction
        parts += [("gradients", span, width * total) for span in ("pass", "step")]
        parts += [("gradients, copied", "step", 4 * total)]
    elif zero_stage == 3:
        large = shares([size for size in weights.sizes if size >= PERSISTENT], ranks) * ranks if ranks > 1 else 0
        kept = large if not refetched(total) else min(large, REUSE // 2)
        parts += [
            ("gathered weights", "pass", width * kept),
            ("gathering", "pass", width * min(large, PREFETCH)),  # then each weight is joined from its parts
            ("bucket, joined", "pass", width * min(bucket, total)),
            ("gradients, joined", "step", 4 * own),
        ]
    else:
        kept, stepped = _gradients(stage, total, own, half, done)
        parts += [
            ("two buckets", "pass", 2 * width * bucket),
            ("bucket, joined", "pass", width * min(bucket, total)),
            ("gradients", "pass", kept),
            ("gradients", "step", stepped),
        ]
    return tuple(Part(name=name, span=span, bytes=size) for name, span, size in parts if size)


def peak(parts: Sequence[Part]) -> int:
    """The most that a rank holds at once."""
    spans = {span: sum(part.bytes for part in parts if part.span == span) for span in ("always", "pass", "step")}
    return spans["always"] + max(spans["pass"], spans["step"])


def room(stage: Stage, weights: Weights, on: Ranks) -> float:
    """Bytes of a device that its state and the engine's buffers leave for the activations of a pass; maybe below 0.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    none = Activations(held=0, peak=0, kernels=0)
    parts = (
        *state(stage, weights, on.count, on.half),
        *transient(stage, weights, on.count, on.half, on.gpu, none),
    )
    return USABLE * on.memory - RESERVED - sum(part.bytes for part in parts if part.span != "step")


def largest_micro(stage: Stage, weights: Weights, ranks: int, memory: float, activations: Activations) -> int:
    """Samples of the largest micro-batch in bf16 on devices of `memory` bytes; 0: the state alone does not fit.

    It need not divide the stage's batch.
    """
    left = room(stage, weights, Ranks(count=ranks, gpu=True, half=True, memory=memory))
    return max(0, int(left // activations.peak))


def own_elements(stage: Stage, weights: Weights, ranks: int) -> int:
    """Elements of the optimizer's state on each rank."""
    if stage.engine.sharding == "overlapped":
        return buckets(stage, weights.sizes, ranks).own
    if stage.engine.zero_stage == 0:
        return weights.total
    return shares(weights.sizes, ranks) if stage.engine.zero_stage == 3 else share(weights.total, ranks)


def _gradients(stage: Stage, total: int, own: int, half: bool, done: int) -> tuple[int, int]:
    """Bytes of gradients outside the buckets at stages 1 and 2, in the pass and in the step.

    Each rank takes its own share out of the buckets; the step joins it and casts it to fp32. Stage 2 sums it over the
    passes, in bf16 straight into one fp32 vector. Stage 1 sums before it reduces, so that it keeps all of it (in fp32
    alone: engine_rules.passes).
    """
    if half:
        summed = 8 * own if done > 1 else 4 * own  # a pass's share beside the sum
        return (summed, 4 * own) if stage.engine.zero_stage == 2 else (2 * own, 8 * own)
    if done == 1:
        return 4 * own, 8 * own
    return (8 * own, 12 * own) if stage.engine.zero_stage == 2 else (4 * total + 4 * own, 12 * own)
