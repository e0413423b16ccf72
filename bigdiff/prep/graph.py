"""Pairs of alike samples to decisions: who is linked with whom, and who goes in whose favour. Pure numpy."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]


def components(one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """The connected components of the graph with the edges (one[i], other[i]): (nodes, smallest node of each's).

    Labels sink along the edges and are shortened by pointer jumping, so rounds grow with the logarithm of a chain's
    length. `nodes` is sorted and holds those that occur in an edge.
    """
    nodes, first, second = _numbered(one, other)
    label = np.arange(len(nodes), dtype=np.int32)
    while len(first):
        low = np.minimum(label[first], label[second])
        sunk = label.copy()
        for end in (first, second):
            np.minimum.at(sunk, label[end], low)  # labels alone sink, so what has one label keeps one
        while not np.array_equal(sunk, deeper := sunk[sunk]):
            sunk = deeper
        label = sunk
        apart = label[first] != label[second]
        first, second = first[apart], second[apart]
    return nodes, nodes[label]


def stars(better: Ints, worse: Ints) -> tuple[Ints, Ints]:
    """Who goes, in rank order: (dropped, the kept one each goes for), for alike pairs with better[i] < worse[i].

    A node stays if it is alike to no better node that stays: what taking the nodes one after the other would keep (the
    lexicographically first maximal independent set). So what goes is alike to what it goes for, not merely linked with
    it by a chain, and no two that stay are alike. Several at once: all whose better neighbours are decided (Blelloch et
    al. 2012, algorithm 2). `dropped` is sorted; of several kept neighbours the best is named.
    """
    nodes, first, second = _numbered(better, worse)
    kept = np.zeros(len(nodes), bool)
    gone = np.zeros(len(nodes), bool)
    open_first, open_second = first, second
    while len(open_first):
        blocked = np.zeros(len(nodes), bool)
        blocked[open_second] = True
        kept |= ~blocked & ~gone
        gone[open_second[kept[open_first]]] = True
        undecided = ~(kept | gone)
        left = undecided[open_first] & undecided[open_second]
        open_first, open_second = open_first[left], open_second[left]
    best = np.full(len(nodes), len(nodes), np.int32)
    favoured = ~gone[first]
    np.minimum.at(best, second[favoured], first[favoured])
    dropped = np.flatnonzero(gone)
    return nodes[dropped], nodes[best[dropped]]


def _numbered(one: Ints, other: Ints) -> tuple[Ints, Places, Places]:
    """The nodes in order, and the edges' ends as places among them: half as wide, for there may be very many edges."""
    nodes = np.union1d(np.unique(one), np.unique(other))
    assert len(nodes) <= np.iinfo(np.int32).max
    return nodes, np.searchsorted(nodes, one).astype(np.int32), np.searchsorted(nodes, other).astype(np.int32)
