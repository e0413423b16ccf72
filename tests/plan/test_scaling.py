from dataclasses import replace

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.plan.links import Fabric
from bigdiff.plan.scaling import Machine, Pace, fitted, predict, uncovered, update_bytes
from bigdiff.train.memory import Weights
from bigdiff.train.volumes import Volume

SD = Weights(sizes=(859_520_964,), frozen=0)
FABRIC = Fabric(per_node=8, inside=360e9, between=40e9)
MACHINE = Machine(pace=Pace(image=6e-3, element=1e-11), fabric=FABRIC)
ONE = ["engine.zero_stage=1", "data.canonical_nodes=1"]


def test_one_rank_computes_and_updates_and_sends_nothing() -> None:
    stage = load_stage("512px", [*ONE, "batch.total=64", "batch.micro=64"])
    step = predict(stage, SD, 1, MACHINE)
    assert step.compute == pytest.approx(64 * 6e-3)
    assert step.update == pytest.approx(SD.total * 1e-11)
    assert step.sent == 0
    assert step.seconds == pytest.approx(step.compute + step.update, rel=1e-3)
    assert step.images_per_second == pytest.approx(64 / step.seconds)


def test_a_larger_share_of_each_rank_scales_better() -> None:
    efficiencies = []
    for micro in (4, 16, 64):
        stages = [load_stage("512px", [*ONE, f"batch.total={micro * n}", f"batch.micro={micro}"]) for n in (1, 512)]
        alone, many = (predict(stage, SD, n, MACHINE) for stage, n in zip(stages, (1, 512), strict=True))
        efficiencies.append(many.efficiency(alone))
    assert efficiencies == sorted(efficiencies)
    assert 0.4 < efficiencies[0] < efficiencies[-1] < 1


def test_collectives_without_overlap_are_all_seen() -> None:
    stage = load_stage("512px", [*ONE, "batch.total=256", "batch.micro=4"])
    beside = predict(stage, SD, 64, MACHINE)
    after = predict(stage, SD, 64, replace(MACHINE, pace=replace(MACHINE.pace, overlap=False)))
    assert after.exposed == pytest.approx(beside.exposed + beside.hidden)
    assert after.hidden == 0
    assert beside.hidden > 0


def test_accumulation_at_stage_2_reduces_each_pass() -> None:
    stages = [load_stage("512px", ["batch.total=512", f"batch.micro={micro}"]) for micro in (8, 4)]
    once, twice = (predict(stage, SD, 64, MACHINE) for stage in stages)
    assert (once.passes, twice.passes) == (1, 2)
    reduced = 2 * 63 / 64 * 2 * SD.total
    assert twice.sent - once.sent == pytest.approx(reduced, rel=1e-6)


def test_groups_of_ranks_pay_short_rings_and_a_larger_update() -> None:
    ours = ["engine.sharding=overlapped", "batch.total=2048"]
    many = Weights(sizes=(5_000_000,) * 172, frozen=0)  # of which a bucket takes ten
    one = predict(load_stage("512px", ours), many, 512, MACHINE)
    nodes = predict(load_stage("512px", [*ours, "engine.shard_ranks=8"]), many, 512, MACHINE)
    assert nodes.exposed < one.exposed / 4
    assert nodes.update == pytest.approx(64 * one.update, rel=1e-3)
    assert nodes.seconds < one.seconds


def test_the_first_bucket_is_never_hidden_and_a_slow_network_shows() -> None:
    during = [Volume(what="", kind="all-reduce", when="backward", bytes=1, calls=10)]
    assert uncovered(during, taken=1.0, window=100.0, done=1) == pytest.approx(0.1)
    assert uncovered(during, taken=10.0, window=1.0, done=1) == pytest.approx(9.1)
    assert uncovered([replace(during[0], calls=1)], taken=5.0, window=100.0, done=1) == pytest.approx(5.0)
    assert uncovered([], 0.0, 1.0, 1) == 0
    # a bucket's second collective is no bucket of its own
    assert uncovered([*during, replace(during[0], apart=8)], taken=1.0, window=100.0, done=1) == pytest.approx(0.1)


def test_a_batch_is_fitted_to_the_ranks() -> None:
    stage = load_stage("512px")
    assert [fitted(stage, n).batch.micro for n in (8, 256, 512, 1024, 2048)] == [4, 4, 4, 2, 1]
    assert fitted(load_stage("512px", ["batch.micro=6", "batch.total=1536"]), 128).batch.micro == 6
    assert fitted(load_stage("512px", ["batch.micro=8", "batch.total=1536"]), 128).batch.micro == 6
    with pytest.raises(UsageError, match="does not divide"):
        fitted(stage, 4096)


def test_the_hosts_floor_and_the_updates_bytes() -> None:
    pace = Pace(image=1e-3, fixed=2e-3, floor=5e-3)
    assert [pace.passed(micro) for micro in (1, 3, 10)] == pytest.approx([5e-3, 5e-3, 12e-3])
    assert update_bytes(load_stage("512px"), half=True) == 2 + 4 + 4 + 8 + 28 + 4 + 2 + 12
    assert update_bytes(load_stage("512px", ["ema.decays=[]"]), half=False) == 4 + 4 + 4 + 8 + 28 + 4 + 4
