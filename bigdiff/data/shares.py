"""Who is drawn at draw x, so that everyone's count is always next to its share: closed form, exact, no period.

Members hang in a binary tree that halves the weight as evenly as it can. Of the first x draws of a node, its left
child gets floor((x a + d // 2) / d), with a the left and d the whole weight, and the right child the others. So counts
before any draw, the draw of a member's k-th turn and the member of any draw are a walk of the tree, in whole numbers.
A branch carries at most 2/3 of its parent's weight unless it is a leaf, so a count is off by less than 2 at any x.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import gcd

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
WHOLE = 2**40  # largest sum of weights
DRAWS = 2**22  # most draws at a time: draws x weight must fit 63 bits


@dataclass(frozen=True, slots=True)
class _Node:
    left_weight: int
    weight: int
    left: int  # a node's number, or ~member
    right: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Members with whole positive weights, drawn in turn. Make it with `shares_of`, which keeps the trees."""

    weights: tuple[int, ...]
    _nodes: list[_Node] = field(init=False, repr=False, compare=False)
    _paths: list[list[tuple[int, bool]]] = field(init=False, repr=False, compare=False)  # (node, to its left?)

    def __post_init__(self) -> None:
        assert self.weights and min(self.weights) > 0 and sum(self.weights) <= WHOLE, "weights must be positive"
        object.__setattr__(self, "_nodes", [])
        object.__setattr__(self, "_paths", [[] for _ in self.weights])
        heaviest = sorted(range(len(self.weights)), key=lambda member: -self.weights[member])
        if len(heaviest) > 1:
            self._grow(heaviest)

    def _grow(self, members: list[int]) -> int:
        if len(members) == 1:
            return ~members[0]
        sums = list(accumulate(self.weights[member] for member in members))
        half = bisect_left(sums, sums[-1] / 2)
        if half and sums[-1] - 2 * sums[half - 1] <= 2 * sums[half] - sums[-1]:
            half -= 1
        cut = min(half + 1, len(members) - 1)
        number = len(self._nodes)
        self._nodes.append(_Node(0, 0, 0, 0))
        for place, member in enumerate(members):
            self._paths[member].append((number, place < cut))
        left, right = self._grow(members[:cut]), self._grow(members[cut:])
        self._nodes[number] = _Node(sums[cut - 1], sums[-1], left, right)
        return number

    def counts(self, draws: int) -> list[int]:
        """How many of the first `draws` draws each member got."""
        found = [draws] * len(self.weights)
        given = [draws] * max(len(self._nodes), 1)
        for number, node in enumerate(self._nodes):  # parents come first
            whole = given[number]
            left = (whole * node.left_weight + node.weight // 2) // node.weight
            for child, count in ((node.left, left), (node.right, whole - left)):
                if child < 0:
                    found[~child] = count
                else:
                    given[child] = count
        return found

    def draw_of(self, member: int, turn: int) -> int:
        """The draw at which `member` gets its turn number `turn`, both from 0: the inverse of `draws`."""
        draw = turn
        for number, to_left in reversed(self._paths[member]):
            node = self._nodes[number]
            half = node.weight // 2
            if to_left:
                draw = ((draw + 1) * node.weight - half - 1) // node.left_weight
            else:  # x - floor((x a + h) / d) = floor((x (d - a) + d - 1 - h) / d)
                rest = node.weight - 1 - half
                draw = ((draw + 1) * node.weight - rest - 1) // (node.weight - node.left_weight)
        return draw

    def draws(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Member and number of its turn at draws start ... start + count - 1, each int64 [count]."""
        assert count <= DRAWS, "too many draws at a time"
        members, turns = np.empty(count, np.int64), np.empty(count, np.int64)
        root = 0 if self._nodes else ~0
        pending = [(root, start, np.arange(count, dtype=np.int64))]
        while pending:
            child, first, places = pending.pop()
            if child < 0:
                members[places] = ~child
                turns[places] = first + np.arange(len(places))
            elif len(places):
                node = self._nodes[child]
                before, rest = divmod(first * node.left_weight + node.weight // 2, node.weight)
                steps = (rest + np.arange(len(places) + 1) * node.left_weight) // node.weight
                to_left = np.diff(steps) > 0
                pending.append((node.left, before, places[to_left]))
                pending.append((node.right, first - before, places[~to_left]))
        return members, turns


@lru_cache(maxsize=4096)
def _shares(weights: tuple[int, ...]) -> Shares:
    return Shares(weights)


def shares_of(weights: tuple[int, ...]) -> Shares:
    """The shares of these weights; only their ratios matter."""
    common = gcd(*weights)
    return _shares(tuple(weight // common for weight in weights))
