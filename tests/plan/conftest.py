"""A measurement that tests of plans rest on, and a world of one."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from bigdiff.plan.probe import Probe
from bigdiff.runtime.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """With a real process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def probed() -> Probe:
    """What a measurement of two CPU ranks may have found."""
    return Probe(
        date="2026-11-22",
        device="cpu",
        ranks=2,
        stage="quickstart-32px",
        flops=10**9,
        half=False,
        image=2e-3,
        fixed=5e-2,
        micro=16,
        spread=0.1,
        element=3e-9,
        step=1e-2,
        matmul=7e10,
        rate=7e8,
        latency=6e-4,
        seconds=40.0,
    )
