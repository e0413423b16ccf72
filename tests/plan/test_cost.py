import pytest

from bigdiff.config.load import load_stage
from bigdiff.plan.cost import cost
from bigdiff.plan.scaling import Step


def test_a_stage_by_hand() -> None:
    """1,000 steps of 36 s on 16 devices: 10 hours, 160 device-hours, two nodes."""
    step = Step(ranks=16, micro=4, passes=1, compute=30, exposed=4, hidden=9, update=1, other=1, sent=0)
    found = cost(load_stage("512px", ["steps=10000", "optim.warmup_steps=0"]), step, price=2.0, node_watts=10_200)
    assert found.days == pytest.approx(100 / 24)
    assert found.device_hours == pytest.approx(1600)
    assert found.money == pytest.approx(3200)
    assert found.energy == pytest.approx(100 * 2 * 10.2)
    assert (found + found).money == pytest.approx(6400)
