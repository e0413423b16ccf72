"""Improved precision and recall of generated features against real ones (Kynkaanniemi et al. 2019), k = 3.

A set's manifold is the union of balls around its features, each reaching to its k-th nearest other feature. Precision
is the share of generated features in the real manifold, recall that of real ones in the generated manifold. The authors
take VGG-16's features; Inception's, which are taken here, are those of Dhariwal & Nichol (2021).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NEIGHBOURS: Final = 3
BLOCK: Final = 2048  # features compared at a time, which bounds the memory to BLOCK x the other set's features


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRecall:
    """Shares from 0 to 1."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = NEIGHBOURS, block: int = BLOCK) -> PrecisionRecall:
    """Of features [N, D] and [M, D], compared in float64, block by block.

    Raises:
        ValueError: when a set has no k-th other feature.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"{len(real)} and {len(generated)} features have no {k}-th neighbours")
    real, generated = real.to(torch.float64), generated.to(torch.float64)
    return PrecisionRecall(
        precision=_inside(generated, real, radii(real, k, block), block),
        recall=_inside(real, generated, radii(generated, k, block), block),
    )


def radii(features: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Distance [N] of each feature [N, D] to its k-th nearest other one."""
    # of a row's distances the least is its own, 0
    return torch.cat(
        [torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in torch.split(features, block)]
    )


def _inside(points: Tensor, centres: Tensor, reach: Tensor, block: int) -> float:
    found = sum(int((torch.cdist(part, centres) <= reach).any(dim=1).sum()) for part in torch.split(points, block))
    return found / len(points)
