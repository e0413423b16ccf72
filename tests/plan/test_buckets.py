from collections.abc import Sequence
from dataclasses import replace

import pytest

from bigdiff.config.load import load_stage
from bigdiff.models.network import network
from bigdiff.plan import buckets
from bigdiff.plan.links import Fabric, seconds
from bigdiff.plan.scaling import Machine, Pace, predict
from bigdiff.train.memory import Weights
from bigdiff.train.volumes import Volume, volumes

SMALL = Weights(sizes=(700_001, 300, 2_000_000, 1_299_999, 5_000_000, 999_700), frozen=0)
FABRIC = Fabric(per_node=8, inside=360e9, between=40e9)
FAST = Machine(pace=Pace(image=6e-3, element=1e-11), fabric=FABRIC)
SLOW = replace(FAST, fabric=replace(FABRIC, inside=4e9, between=1e9))
AWAITED = replace(FAST, fabric=replace(FABRIC, latency=2e-3))
GLOO = replace(FAST, pace=replace(FAST.pace, overlap=False))
WIDTH = 2  # bytes of a bf16 gradient


@pytest.mark.parametrize("machine", [FAST, SLOW, AWAITED, GLOO], ids=["fast", "slow", "awaited", "gloo"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_no_other_size_leaves_less(machine: Machine, zero_stage: int, ranks: int) -> None:
    total = 4 * ranks * (1 if zero_stage == 1 else 2)  # beyond ZeRO-1 two passes
    stage = load_stage("512px", [f"engine.zero_stage={zero_stage}", f"batch.total={total}", "data.canonical_nodes=1"])
    found = buckets.best(stage, SMALL, ranks, machine)
    assert found is not None and found == buckets.of(stage, SMALL, ranks, machine, found.elements)
    assert found.elements % 2 == 0 and found.elements >= max(SMALL.sizes)
    for size in range(max(SMALL.sizes), 11_000_000, 20_000):
        assert found.exposed <= buckets.of(stage, SMALL, ranks, machine, size).exposed * (1 + 1e-12), size


def test_the_planner_shows_what_the_stage_would_have_with_it() -> None:
    stage = load_stage("512px", ["batch.total=256", "batch.micro=4", "data.canonical_nodes=1"])
    found = buckets.best(stage, SMALL, 64, SLOW)
    assert found is not None
    with_ = load_stage(
        "512px", ["batch.total=256", "data.canonical_nodes=1", f"engine.bucket_elements={found.elements}"]
    )
    assert predict(with_, SMALL, 64, SLOW).exposed == found.exposed < predict(stage, SMALL, 64, SLOW).exposed


def test_where_no_bucket_has_an_effect_none_is_named() -> None:
    stage = load_stage("512px", ["batch.total=64", "batch.micro=64", "data.canonical_nodes=1"])
    assert buckets.best(stage, SMALL, 1, FAST) is None
    assert buckets.best(replace(stage, engine=replace(stage.engine, zero_stage=0)), SMALL, 64, FAST) is None


@pytest.mark.parametrize(("latency", "image", "count"), [(1e-12, 1.0, 20), (1.0, 1e-9, 1)])
def test_without_latency_buckets_are_small_and_without_a_window_there_is_one(
    latency: float, image: float, count: int
) -> None:
    equal = Weights(sizes=(1_000_000,) * 20, frozen=0)
    machine = Machine(pace=Pace(image=image), fabric=replace(FABRIC, latency=latency))
    stage = load_stage("512px", ["batch.total=8", "batch.micro=1", "data.canonical_nodes=1"])
    found = buckets.best(stage, equal, 8, machine)
    assert found is not None and found.elements == equal.total / count


def test_every_number_of_buckets_has_a_short_even_size() -> None:
    for zero_stage, total, most in ((1, SMALL.total, 2), (3, 64 * sum(-(-size // 64) for size in SMALL.sizes), 3)):
        tried = list(buckets.sizes(zero_stage, SMALL, 64))
        assert [-(-total // size) for size in tried] == list(range(1, most + 1))
        assert all(size % 2 == 0 for size in tried) and min(tried) >= max(SMALL.sizes)
    tried = list(buckets.sizes(1, Weights(sizes=(7_000_000,) * 30, frozen=0), 8))
    assert tried[:4] == [300_000_000, 200_000_000, 70_000_000, 60_000_000] and tried[-1] == 7_000_000


def gradients(elements: int) -> Volume:
    return Volume(what="", kind="all-reduce", when="backward", bytes=WIDTH * elements, calls=1)


def walked(sizes: Sequence[int], bucket: int, ranks: int, window: float) -> float:
    """Seconds after the last gradient: DeepSpeed's buckets of whole gradients, sent one after another.

    Gradients come in the reverse order of the parameters, each after its share of the window.
    """
    held = begun = 0
    end, total = 0.0, sum(sizes)
    for size in [*reversed(sizes), 2 * total]:  # the last one ends what is held
        if held and held + size > bucket:
            end = max(end, window * begun / total) + seconds(gradients(held), ranks, FABRIC)
            held = 0
        held, begun = held + size, begun + size
    return end - window


@pytest.mark.parametrize(("ranks", "micro"), [(8, 64), (64, 32), (512, 4)])
def test_equal_buckets_leave_what_sds_gradients_do_to_one_and_a_half_milliseconds(ranks: int, micro: int) -> None:
    """Sizes up to four of the largest gradient differ by no more than that: the best of them is a hint."""
    stage = load_stage("512px", [f"batch.total={ranks * micro}", f"batch.micro={micro}", "data.canonical_nodes=1"])
    weights = Weights(sizes=network(stage).sizes, frozen=0)
    window = micro * FAST.pace.image * FAST.pace.backward
    found = volumes(stage, weights.sizes, ranks, True, True)
    after = sum(seconds(one, ranks, FABRIC) for one in found if one.when == "step")
    for size in (30_000_000, 50_000_000, 70_000_000, 100_000_000):
        exposed = buckets.of(stage, weights, ranks, FAST, size).exposed - after
        assert exposed == pytest.approx(walked(weights.sizes, size, ranks, window), abs=1.5e-3)
