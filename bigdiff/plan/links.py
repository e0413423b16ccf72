"""How long a collective takes, from its bytes and the links between the ranks.

NCCL's own model, by which it chooses its algorithms (src/graph/tuning.cc of github.com/NVIDIA/nccl, at 01afd20): a ring
passes every byte (ranks - 1) / ranks times per round, an all-reduce in two rounds, over the slowest of the links; a
step of the ring costs a latency. A tree has a logarithm of them and nine tenths of the bandwidth. Rings of a node's
devices leave it through one network card each, so that a node's cards add up.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from bigdiff.train.volumes import Volume

EFFICIENCY: Final = 0.8  # of a link's rate that a ring reaches; assumed (nccl-tests on H100: 0.8 inside a node)
_RING: Final = (8.4e-6, 3.4e-6, 9.6e-6)  # seconds: at all, per step over NVLink, per step over the network (Simple)
_TREE: Final = (4.4e-6, 1.2e-6, 8.5e-6)  # the same (LL128)
_TREE_RATE: Final = 0.9 * 0.915  # of the ring's, times what LL128's flags leave
_PLATEAU: Final = 1.9  # on the latency of an all-reduce's ring between nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """The links of a cluster, bytes/s in one direction for each device."""

    per_node: int  # ranks
    inside: float  # between a node's ranks, as a ring reaches it
    between: float  # of a rank's share of the node's network cards, as a ring reaches it
    latency: float = 0.0  # measured seconds of a small collective inside a node; 0: NCCL's model

    def rate(self, ranks: int) -> float:
        """Bytes/s that each rank of a ring sends."""
        if ranks <= self.per_node:
            return self.inside
        return min(self.inside, self.per_node * self.between)


def seconds(volume: Volume, ranks: int, fabric: Fabric) -> float:
    """Of all calls of `volume` one after another."""
    if volume.group:
        # of ranks that are far apart each has its own network card, which no other of its ring shares
        ranks, fabric = volume.group, replace(fabric, per_node=max(1, fabric.per_node // volume.apart))
    if ranks == 1:
        return volume.calls * fabric.latency
    ring = volume.calls * _ring(volume, ranks, fabric) + volume.sent(ranks) / fabric.rate(ranks)
    if volume.kind != "all-reduce" or fabric.latency:
        return ring
    sent = 2 * volume.bytes / (_TREE_RATE * fabric.rate(ranks))  # up the tree and down again
    return min(ring, volume.calls * _tree(ranks, fabric) + sent)


def _ring(volume: Volume, ranks: int, fabric: Fabric) -> float:
    rounds, nodes = 2 if volume.kind == "all-reduce" else 1, _nodes(ranks, fabric)
    if fabric.latency:  # of one node, measured; between nodes NCCL's is added
        return fabric.latency + rounds * (nodes - 1) * _RING[2]
    base, inside, between = _RING
    steps, crossing = rounds * (ranks - 1), rounds * (nodes - 1)
    wait = base + (steps - crossing) * inside + crossing * between
    return wait * (_PLATEAU if rounds == 2 and nodes > 1 else 1.0)


def _tree(ranks: int, fabric: Fabric) -> float:
    base, inside, between = _TREE
    nodes = _nodes(ranks, fabric)
    return base + 2 * ((ranks / nodes - 1) * inside + math.log2(nodes) * between)


def _nodes(ranks: int, fabric: Fabric) -> int:
    return math.ceil(ranks / fabric.per_node)
