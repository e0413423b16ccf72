"""From what every rank owns to the whole canonical vector."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from bigdiff.engine.partition import Partition, Piece


def gathered(partition: Partition, local: Sequence[torch.Tensor]) -> torch.Tensor:
    """The canonical vector [partition.total] of all ranks' tensors aligned with their masters; collective.

    Every rank holds twice the vector for a moment.
    """
    mine = torch.cat([one.detach() for one in local])
    everyone: list[tuple[tuple[Piece, ...], int]] = [((), 0)] * dist.get_world_size()
    dist.all_gather_object(everyone, (partition.pieces, len(mine)))
    longest = max(length for _, length in everyone)
    padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
    vectors = [torch.empty_like(padded) for _ in everyone]
    dist.all_gather(vectors, padded)
    flat = torch.empty(partition.total, dtype=mine.dtype, device=mine.device)
    for (pieces, _), vector in zip(everyone, vectors, strict=True):
        for piece in pieces:
            flat[piece.start : piece.start + piece.length] = vector[piece.local : piece.local + piece.length]
    return flat
