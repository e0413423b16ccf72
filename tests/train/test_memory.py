from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.load import load_stage
from bigdiff.models.activations import Activations
from bigdiff.train.memory import GLOO, Part, Ranks, Weights, largest_micro, own_elements, peak, room, state, transient

LAYERS = (*[(350, 350)] * 8, (350, 351), (351, 351))  # tests/train/observed.py
SIZES = tuple(one for a, b in LAYERS for one in ((a * b, b) if b != 351 else (a * b,)))
SD = Weights(sizes=(859_520_964,), frozen=123_060_480)
NONE = Activations(held=0, peak=0, kernels=0)
Seen = dict[str, dict[str, Any]]


def held(parts: tuple[Part, ...]) -> int:
    return sum(part.bytes for part in parts)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_state_is_the_sum_of_the_engines_tensors(
    observed: Callable[[int], Seen], stage_file: Path, ranks: int
) -> None:
    weights = Weights(sizes=SIZES, frozen=0)
    for case, one in observed(ranks).items():
        stage = load_stage(str(stage_file), [part for part in case.split() if not part.startswith("reuse=")])
        modelled = held(state(stage, weights, ranks, one["half"]))
        assert one["held"] == pytest.approx(modelled, rel=0.01), case  # the inputs and DeepSpeed's flags are in it


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_step_takes_beside_it_is_near_the_allocators_trace(
    observed: Callable[[int], Seen], stage_file: Path, ranks: int
) -> None:
    """The network's activations are a few kilobytes; a share that ends within a layer takes all of that layer."""
    weights = Weights(sizes=SIZES, frozen=0)
    for case, one in observed(ranks).items():
        if "reuse=" in case:
            continue
        stage = load_stage(str(stage_file), case.split())
        parts = transient(stage, weights, ranks, one["half"], False, NONE)
        # how many buckets gloo's threads have copied and not yet sent is a matter of time
        least = peak([part for part in parts if part.name != GLOO])
        assert 0.6 * least < one["peak"] < 1.4 * peak(parts), case


def test_sd_v1_on_64_gpus() -> None:
    """GB, by hand: 2 bytes a weight, 12 of masters and moments and 4 of the average over 64 ranks."""
    stage = load_stage("512px")
    parts = {part.name: part.bytes / 1e9 for part in state(stage, SD, 64, half=True)}
    assert parts == pytest.approx(
        {"weights": 1.719, "frozen weights": 0.246, "masters": 0.0537, "moments": 0.1074, "averages": 0.0537}, abs=1e-3
    )


def test_each_stage_shards_more_and_stage_0_nothing() -> None:
    sizes = [
        held(state(load_stage("512px", [f"engine.zero_stage={zero}", "batch.total=256"]), SD, 64, half=True))
        for zero in (0, 1, 3)
    ]
    assert sizes[0] > 3 * sizes[1] > 3 * sizes[2]
    none, some, ours = (
        load_stage("512px", [one, "batch.total=256"])
        for one in ("engine.zero_stage=0", "engine.zero_stage=1", "engine.sharding=overlapped")
    )
    assert own_elements(none, SD, 64) == SD.total
    assert own_elements(some, SD, 64) == pytest.approx(SD.total / 64, rel=1e-6)
    assert own_elements(ours, SD, 64) == pytest.approx(SD.total / 64, rel=1e-5)


def test_the_room_is_what_the_parts_of_a_pass_leave() -> None:
    stage, on = load_stage("512px"), Ranks(count=64, gpu=True, half=True, memory=80e9)
    activations = Activations(held=0, peak=10**9, kernels=0)
    parts = (*state(stage, SD, 64, True), *transient(stage, SD, 64, True, True, activations))
    taken = sum(part.bytes for part in parts if part.span in ("always", "pass"))
    assert room(stage, SD, on) == pytest.approx(0.95 * 80e9 - 2e9 - taken + stage.batch.micro * 10**9)
    assert room(stage, SD, replace(on, memory=1e9)) < 0


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    stage, activations = load_stage("512px"), Activations(held=0, peak=952_483_204, kernels=0)
    found = largest_micro(stage, SD, 64, 80e9, activations)
    assert 60 < found < 80  # 64 was estimated before
    assert largest_micro(stage, SD, 64, 80e9 + 953e6 / 0.95, activations) == found + 1
    assert largest_micro(stage, SD, 1, 10e9, activations) == 0
