from dataclasses import replace

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.plan import measure
from bigdiff.plan.forecast import forecast
from bigdiff.plan.machine import Basis

TINY = [
    "model.text.encoder=nowhere",
    "model.unet.block_out_channels=[16,32]",
    "batch.total=8",
    "batch.micro=4",
]


def test_two_ranks_are_measured_and_planned_with() -> None:
    stage = load_stage("quickstart-32px", TINY)
    found = measure.measure(stage, 2, seconds=0.3)
    assert (found.device, found.ranks, found.half, found.micro) == ("cpu", 2, False, 4)
    assert 1e-4 < found.fixed + found.micro * found.image < 10
    assert 1e6 < found.rate < 1e12
    assert 1e-6 < found.latency < 1
    assert 1e8 < found.matmul < 1e13
    assert 1e-11 < found.element < 1e-5
    cluster = replace(load_cluster("local"), processes_per_node=2)
    (row,) = forecast(stage, cluster, [1], Basis(probe=found)).rows
    # its own engine's step is explained by its parts and what is left
    assert row.step.seconds >= found.step + found.fixed + found.micro * found.image


def test_a_stage_that_cannot_be_planned_is_refused_before_a_process_starts() -> None:
    with pytest.raises(UsageError, match="autoencoder"):
        measure.measure(load_stage("kl-f8"), 2)
