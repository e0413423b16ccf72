"""A measurement that tests of plans rest on."""

import pytest

from bigdiff.plan.probe import Probe


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
