"""What a machine rests on; forecasts with it are in test_forecast.py."""

from dataclasses import replace

import pytest

from bigdiff.config.load import load_cluster, load_stage
from bigdiff.models import activations, flops
from bigdiff.plan.machine import Basis, Image, described
from bigdiff.plan.probe import Probe
from bigdiff.plan.scaling import FRACTION, GRADIENT, KERNEL
from bigdiff.runtime.devices import device

SMALL = ["model.unet.block_out_channels=[32,64,128,128]", "model.unet.attention_head_dim=4"]
CLUSTER = load_cluster("sd-v1-card")


def image(settings: list[str]) -> Image:
    stage = load_stage("512px", settings)
    return Image(flops=flops.per_image(stage), activations=activations.per_image(stage, half=True))


def test_a_row_of_the_table_and_what_is_assumed_of_it() -> None:
    one, row = image(SMALL), device("h100")
    found = {}
    for kind in ("deepspeed", "overlapped"):
        stage = load_stage("512px", [*SMALL, f"engine.sharding={kind}"])
        found[kind], told = described(stage, CLUSTER, Basis(device=row, network=200), one, tensors=686)
        assert found[kind].pace.floor == one.activations.kernels * KERNEL + 686 * GRADIENT[kind]
        assert any(f"what {kind} does with 686 gradients" in sentence for sentence in told)
        assert any("modelled: 200 Gb/s between nodes" in sentence for sentence in told)
    theirs, ours = found["deepspeed"].pace, found["overlapped"].pace
    assert replace(theirs, floor=ours.floor) == ours
    assert ours.image * row.peak * FRACTION == pytest.approx(one.flops.total)


def test_a_measurement_counts_before_the_table(probed: Probe) -> None:
    one, stage = image(SMALL), load_stage("512px", [*SMALL, "engine.precision=fp32"])
    for row in (None, device("h100")):
        found, told = described(stage, CLUSTER, Basis(device=row, probe=probed), one, tensors=686)
        assert found.pace.image == probed.image * one.flops.total / probed.flops
        assert (found.pace.floor, found.pace.overlap, found.gpu) == (0.0, False, False)
        assert found.fabric.inside == probed.rate and found.fabric.per_node == CLUSTER.processes_per_node
        assert any("measured with 2 ranks, planned for 8 a node" in sentence for sentence in told)
