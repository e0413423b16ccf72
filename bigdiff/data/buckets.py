"""Which bucket each step is in: all ranks share one, and every stretch of steps has nearly the right mix.

The counts follow the shares exactly and without a period (bigdiff.data.shares), so what a bucket has left at the end
of an epoch is carried into the next, and a bucket smaller than a batch comes up as often as its samples fill one.
Within blocks of 16 steps the buckets are shuffled, as strict turns could fall in step with whatever else is done every
so many steps (a log line every 50 would always show the same bucket).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bigdiff.data.shares import Shares

BLOCK = 16
STREAM = 2**64 - 1  # of the seed's words: no cell's order has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """The buckets of the steps of one phase, counted from its first; a bucket is its number in `shares`."""

    shares: Shares
    seed: int
    phase: int  # phases are shuffled apart

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps it had before."""
        if len(self.shares.weights) == 1:
            return 0, step
        block, within = divmod(step, BLOCK)
        members, turns = _block(self, block)
        return members[within], turns[within]

    def before(self, step: int) -> list[int]:
        """How many of the first `step` steps each bucket had."""
        if len(self.shares.weights) == 1:
            return [step]
        block, within = divmod(step, BLOCK)
        counts = self.shares.counts(block * BLOCK)
        for member in _block(self, block)[0][:within] if within else ():
            counts[member] += 1
        return counts

    def block_of(self, bucket: int, turn: int) -> int:
        """The block of 16 steps that holds the bucket's step number `turn`."""
        return self.shares.draw_of(bucket, turn) // BLOCK

    def step_of(self, bucket: int, turn: int) -> int:
        """The step that is the bucket's number `turn`: the inverse of `at`."""
        if len(self.shares.weights) == 1:
            return turn
        block = self.block_of(bucket, turn)
        members, turns = _block(self, block)
        return block * BLOCK + next(
            place for place in range(BLOCK) if members[place] == bucket and turns[place] == turn
        )


@lru_cache(maxsize=256)
def _block(buckets: Buckets, block: int) -> tuple[list[int], list[int]]:
    members, turns = buckets.shares.draws(block * BLOCK, BLOCK)
    key = np.array([buckets.seed & (2**64 - 1), STREAM], np.uint64)
    counter = np.array([0, block, buckets.phase, 0], np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(BLOCK)
    shuffled = members[np.argsort(words, kind="stable")]
    ordered = np.empty_like(turns)  # a bucket's turns stay in order: only whose turn it is was shuffled
    ordered[np.argsort(shuffled, kind="stable")] = turns[np.argsort(members, kind="stable")]
    return shuffled.tolist(), ordered.tolist()
