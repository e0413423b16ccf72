from pathlib import Path

import pytest

from bigdiff.config.load import load_cluster, load_stage
from bigdiff.plan.counted import counted, of
from bigdiff.plan.forecast import forecast
from bigdiff.plan.machine import Basis
from bigdiff.runtime.devices import device

SMALL = (
    "model.unet.block_out_channels=[32,64,128,128]",
    "model.unet.attention_head_dim=4",
    "model.unet.layers_per_block=1",
)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_without_a_rate_it_is_what_the_forecast_with_one_counts(zero_stage: int) -> None:
    stage = load_stage("256px", [*SMALL, f"engine.zero_stage={zero_stage}", "batch.total=128"])
    cluster = load_cluster("sd-v1-card")
    planned = of(forecast(stage, cluster, [2], Basis(device=device("h100"))))
    alone = counted(stage, 2 * cluster.processes_per_node, gpu=True, half=True)
    assert alone.parts == planned.parts and alone.peak > 0
    assert (alone.checkpoint, alone.disk) == (planned.checkpoint, planned.disk)
    assert alone.sent == pytest.approx(planned.sent) and alone.sent > 0
    assert not alone.lacks


def test_of_an_autoencoder_it_counts_what_is_stored_and_says_what_it_lacks(tmp_path: Path) -> None:
    found = counted(load_stage("kl-f8"), 8, gpu=False, half=False)
    assert found.checkpoint == 4 * (83_653_863 + 2_765_633) * 3
    assert (found.parts, found.sent) == ((), 0.0) and "autoencoder" in found.lacks
