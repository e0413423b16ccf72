"""What the ranks send each other in a step: the collectives of DeepSpeed 0.19.8 at each ZeRO stage, and their bytes.

tests/train/test_volumes.py counts the same calls of the running engine. `reduce_scatter` is DeepSpeed's name at stages
1 and 2 for an all-reduce of which each rank keeps its part: twice a reduce-scatter's bytes. `engine.sharding:
overlapped` has reduce-scatters, and gathers what the next step's first pass needs beside that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bigdiff.config.engine_rules import bucket_of, passes, sharing
from bigdiff.config.schema import Stage
from bigdiff.engine.buckets import Buckets, cut

Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]
# beside each pass, beside the first forward pass of a step, or behind the last one, when nothing else runs
When = Literal["forward", "backward", "first", "step"]
# DeepSpeed's defaults, which the engine leaves as they are
PERSISTENT: Final = 100_000  # stage3_param_persistence_threshold: smaller parameters stay whole on every rank
REUSE: Final = 1_000_000_000  # stage3_max_reuse_distance: what is needed again within so many elements stays whole
PREFETCH: Final = 50_000_000  # stage3_prefetch_bucket_size: elements gathered ahead
FALLBACK: Final = 500_000_000  # elements of a bucket of stage 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One kind of collective in an optimizer step."""

    what: str
    kind: Kind
    when: When
    bytes: int  # of the whole tensors, over all calls: what an all-reduce reduces, what an all-gather gives
    calls: int  # at least
    group: int = 0  # ranks that take part, in every group of as many; 0: all
    apart: int = 1  # how far a group's ranks are from each other: 1 for neighbours

    def sent(self, ranks: int) -> float:
        """Bytes that each of `ranks` sends, and receives, in a ring (Patarasuk & Yuan 2009)."""
        size = self.group or ranks
        return (2 if self.kind == "all-reduce" else 1) * (size - 1) / size * self.bytes


def volumes(stage: Stage, sizes: Sequence[int], ranks: int, gpu: bool, half: bool) -> tuple[Volume, ...]:
    """The collectives of a step of `stage`, whose trained parameters have `sizes` elements, on `ranks` ranks.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    width, done = 2 if half else 4, passes(stage, ranks, gpu)
    zero_stage = stage.engine.zero_stage
    if stage.engine.sharding == "overlapped":
        found = _overlapped(buckets(stage, sizes, ranks), ranks, width, done)
    elif zero_stage == 0:
        found = _replicated(sum(sizes), width)
    elif zero_stage == 3:
        found = _scattered(stage, sizes, ranks, width, done)
    else:
        found = _flat(stage, sum(sizes), ranks, width, done if zero_stage == 2 else 1)
    # the loss, a stop and the state of the checkpoints: World.ask
    agreed = Volume(what="agreement on the step", kind="all-reduce", when="step", bytes=4 * 8, calls=1)
    return (*found, agreed)


def buckets(stage: Stage, sizes: Sequence[int], ranks: int) -> Buckets:
    """Those of `engine.sharding: overlapped`, for parameters of these sizes in the engine's order."""
    return cut(sizes, bucket_of(stage, sum(sizes)), sharing(stage, ranks))


def share(total: int, ranks: int) -> int:
    """Elements of the flat vector that each rank owns at stages 1 and 2; DeepSpeed aligns to two."""
    return math.ceil(total / (2 * ranks)) * 2


def shares(sizes: Sequence[int], ranks: int) -> int:
    """The same at stage 3, which cuts and pads each parameter by itself."""
    return sum(math.ceil(size / ranks) for size in sizes)


def _replicated(total: int, width: int) -> tuple[Volume, ...]:
    """After the last backward pass, with nothing beside it."""
    calls = math.ceil(total / FALLBACK)
    return (Volume(what="gradients", kind="all-reduce", when="step", bytes=total * width, calls=calls),)


def _flat(stage: Stage, total: int, ranks: int, width: int, reductions: int) -> tuple[Volume, ...]:
    calls = math.ceil(total / stage.engine.bucket_elements) * reductions
    reduced = Volume(
        what="gradients", kind="all-reduce", when="backward", bytes=total * width * reductions, calls=calls
    )
    norm = Volume(what="gradient norm", kind="all-reduce", when="step", bytes=4, calls=1)
    if ranks == 1:
        return reduced, norm
    whole = share(total, ranks) * ranks * width
    return reduced, norm, Volume(what="new weights", kind="all-gather", when="step", bytes=whole, calls=1)


def _overlapped(found: Buckets, ranks: int, width: int, done: int) -> tuple[Volume, ...]:
    size, calls, whole = found.ranks, len(found.buckets), found.total * width
    told = []
    if size > 1:
        told += [
            Volume(
                what="gradients",
                kind="reduce-scatter",
                when="backward",
                bytes=whole * done,
                calls=calls * done,
                group=size,
            ),
            Volume(what="new weights", kind="all-gather", when="first", bytes=whole, calls=calls, group=size),
        ]
    if size < ranks:
        told.append(
            Volume(
                what="gradients, between groups",
                kind="all-reduce",
                when="backward",
                bytes=found.own * width * done,
                calls=calls * done,
                group=ranks // size,
                apart=size,
            )
        )
        if size > 1:
            norms = 4 * size
            told.append(Volume(what="gradient norm", kind="all-gather", when="step", bytes=norms, calls=1, group=size))
    elif ranks > 1:
        told.append(Volume(what="gradient norm", kind="all-reduce", when="step", bytes=4, calls=1))
    return tuple(told)


def _scattered(stage: Stage, sizes: Sequence[int], ranks: int, width: int, done: int) -> tuple[Volume, ...]:
    padded = shares(sizes, ranks) * ranks
    calls = math.ceil(padded / stage.engine.bucket_elements) * done
    reduced = Volume(what="gradients", kind="reduce-scatter", when="backward", bytes=padded * width * done, calls=calls)
    norm = Volume(what="gradient norm", kind="all-reduce", when="step", bytes=8, calls=1)
    if ranks == 1:
        return reduced, norm
    small = [size for size in sizes if size < PERSISTENT]
    large = [size for size in sizes if size >= PERSISTENT]
    kept, whole = (width * ranks * shares(some, ranks) for some in (small, large))
    again = round(whole * refetched(sum(sizes)))
    first, second = (done * math.ceil(gathered / width / PREFETCH) for gathered in (whole, again))
    return (
        reduced,
        norm,
        Volume(what="weights", kind="all-gather", when="forward", bytes=whole * done, calls=first),
        Volume(what="weights, again", kind="all-gather", when="backward", bytes=again * done, calls=second),
        Volume(what="new small weights", kind="all-gather", when="step", bytes=kept, calls=1),  # one NCCL group
    )


def refetched(total: int, reuse: int = REUSE) -> float:
    """Share of the weights that stage 3 lets go after the forward pass and gathers again in the backward pass.

    A layer with x elements before it is needed again 2 (total - x) later; beyond `reuse` it is let go.
    """
    return max(0.0, 1 - reuse / (2 * total))
