"""A world of one, and networks that other folders test with, too."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from networks import random_inception as random_inception
from networks import tiny_clip as tiny_clip

from bigdiff.runtime.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """With a real process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    dist.destroy_process_group()
