from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.train.volumes import Volume, refetched, share, shares, volumes

LAYERS = (*[(350, 350)] * 8, (350, 351), (351, 351))  # tests/train/observed.py
SIZES = [one for a, b in LAYERS for one in ((a * b, b) if b != 351 else (a * b,))]
Seen = dict[str, dict[str, Any]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_bytes_are_what_the_engine_asks_torch_for(
    observed: Callable[[int], Seen], stage_file: Path, ranks: int
) -> None:
    seen = {case: one for case, one in observed(ranks).items() if "reuse=" not in case}
    for case, one in seen.items():
        stage = load_stage(str(stage_file), case.split())
        counted: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for volume in volumes(stage, SIZES, ranks, gpu=False, half=one["half"]):
            if volume.what != "agreement on the step":  # the loop's, not the engine's
                counted[volume.kind] += volume.bytes
                calls[volume.kind] += volume.calls
        assert {kind: size for kind, size in counted.items() if size} == one["bytes"], case
        for kind, number in one["calls"].items():
            assert calls[kind] <= number, case
        assert one["calls"].get("all-reduce", 0) <= 2 * calls["all-reduce"], case


def test_stage_3_gathers_again_what_is_needed_late(observed: Callable[[int], Seen]) -> None:
    """The modelled share holds for many layers; these are ten."""
    case = next(one for one in observed(2) if "reuse=1000000000" in one)
    once = observed(2)[case]["bytes"]["all-gather"]
    small = 4 * 2 * shares([size for size in SIZES if size < 100_000], 2)
    for distance in (0, 1_000_000):
        both = observed(2)[case.replace("reuse=1000000000", f"reuse={distance}")]["bytes"]["all-gather"]
        assert (both - once) / (once - small) == pytest.approx(refetched(sum(SIZES), distance), abs=0.2)
    assert refetched(sum(SIZES)) == 0
    assert refetched(859_520_964) == pytest.approx(0.418, abs=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_a_share_holds_its_part_and_little_more(ranks: int) -> None:
    assert 0 <= share(sum(SIZES), ranks) * ranks - sum(SIZES) < 2 * ranks
    assert 0 <= shares(SIZES, ranks) * ranks - sum(SIZES) < ranks * len(SIZES)


def test_a_ring_sends_an_all_reduce_twice() -> None:
    reduced, gathered = (
        Volume(what="", kind=kind, when="step", bytes=1000, calls=1)  # type: ignore[arg-type]
        for kind in ("all-reduce", "all-gather")
    )
    assert (reduced.sent(1), reduced.sent(2), reduced.sent(4)) == (0, 1000, 1500)
    assert gathered.sent(4) == 750


def test_sd_v1_at_stage_1_sends_three_times_its_weights() -> None:
    """5.16 GB a step in a ring of many, where a reduce-scatter and an all-gather, as of our own, send 3.44."""
    stage = load_stage("512px", ["engine.zero_stage=1", "batch.total=1024"])
    sent = sum(one.sent(256) for one in volumes(stage, [859_520_964], 256, gpu=True, half=True))
    assert sent / 1e9 == pytest.approx(5.16 * 255 / 256, abs=0.01)
    ours = load_stage("512px", ["engine.sharding=overlapped", "batch.total=1024"])
    sent = sum(one.sent(256) for one in volumes(ours, [859_520_964], 256, gpu=True, half=True))
    assert sent / 1e9 == pytest.approx(3.44 * 255 / 256, abs=0.01)
    # within a node as much, and an eighth of it round the 32 nodes
    nodes = load_stage("512px", ["engine.sharding=overlapped", "engine.shard_ranks=8", "batch.total=1024"])
    sent = sum(one.sent(256) for one in volumes(nodes, [859_520_964], 256, gpu=True, half=True))
    assert sent / 1e9 == pytest.approx(3.44 * 7 / 8 + 3.44 / 8 * 31 / 32, abs=0.01)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="does not divide"):
        volumes(load_stage("512px"), SIZES, 3, gpu=True, half=True)
