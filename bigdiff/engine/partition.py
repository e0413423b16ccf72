"""How the trained weights form one flat vector, and which slice of it a rank owns."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where one parameter lies in the flat vector of the trained weights (elements)."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """This rank's slice [start, start + len(master)) of the flat fp32 weights; the tail may be padding."""

    layout: tuple[Placed, ...]
    total: int  # elements up to the end of the last parameter
    start: int
    master: torch.Tensor  # fp32, live: writing to it changes the optimizer's weights
