import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.course import Course
from bigdiff.data.egress import egress, epoch_steps, mixing
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.data.mixture import Source

SHARD = 1000  # bytes


def course(shards: int = 64, size: int = 50, window: int = 4, lanes: int = 4, total: int = 64) -> Course:
    return Course(
        sources=(Source(name="a", sizes=np.full(shards, size)),), seed=2, window=window, lanes=lanes, total=total
    )


def sizes(of: Course) -> tuple[np.ndarray, ...]:
    return tuple(np.full(len(source.sizes), SHARD) for source in of.sources)


@pytest.mark.parametrize(("lanes", "nodes"), [(1, 1), (4, 1), (4, 2), (4, 4), (8, 4)])
def test_a_node_for_some_lanes_fetches_the_set_once(lanes: int, nodes: int) -> None:
    # 64 shards in 4 or 8 lanes divide evenly, so that no shard lies in two lanes
    found = egress(course(lanes=lanes), sizes(course()), nodes)
    assert found.first == pytest.approx(1.0)
    assert 1.0 <= found.busiest < 1.15


def test_one_node_with_room_for_all_fetches_once_for_good() -> None:
    assert egress(course(), sizes(course()), 1).later == 0
    assert egress(course(), sizes(course()), 1, cache=32 * SHARD).later > 0.3


def test_caches_that_hold_an_old_epoch_save_what_comes_back() -> None:
    found = egress(course(), sizes(course()), 4)
    assert 0.5 < found.later < 0.95  # 3/4 of a node's shards are new to it
    assert egress(course(), sizes(course()), 4, cache=4 * SHARD).later == pytest.approx(1.0, abs=0.05)


def test_nodes_that_share_a_lane_fetch_it_twice() -> None:
    assert egress(course(), sizes(course()), 8).first == pytest.approx(2.0)


def test_shards_that_lie_in_two_lanes_are_fetched_by_both() -> None:
    found = egress(course(shards=66), sizes(course(shards=66)), 4)
    assert 1.0 < found.first <= 1 + 3 / 66 + 1e-9


def test_the_least_cache_is_the_windows_of_a_nodes_lanes() -> None:
    assert egress(course(), sizes(course()), 4).live_bytes == 4 * SHARD
    assert egress(course(), sizes(course()), 1).live_bytes == 16 * SHARD


def test_a_cache_below_its_windows_costs_a_shard_for_most_samples() -> None:
    found = egress(course(), sizes(course()), 4, cache=2 * SHARD)
    assert found.first > 0.4 * 50


def test_the_fetches_are_those_of_the_samples_that_are_read() -> None:
    # an oracle without windows: every shard that a node's slices touch in an epoch, with room for all
    mixed = Course(
        sources=(
            Source(name="a", sizes=np.full(30, 20), buckets=("x", "y") * 15),
            Source(name="b", sizes=np.arange(20, 40), proportion=0.4, buckets=("x", "z") * 10),
        ),
        seed=4,
        window=3,
        lanes=4,
        total=16,
    )
    touched = 0
    for node in range(2):
        picked = [mixed.locate(step, node * 8, node * 8 + 8) for step in range(epoch_steps(mixed))]
        touched += len({pair for picks in picked for pair in zip(picks.sources, picks.shards, strict=True)})
    found = egress(mixed, sizes(mixed), 2)
    assert found.first * 50 == pytest.approx(touched, abs=50 * 0.02 + 8)


def test_mixing_is_that_of_the_real_batches() -> None:
    for of in (course(window=2), course(window=8), course(shards=40, size=7, window=3)):
        real = [len(set(of.locate(step, 0, 64).shards.tolist())) for step in range(epoch_steps(of))]
        found = mixing(of)
        assert found.mean == pytest.approx(np.mean(real), rel=0.08)
        assert abs(found.least - min(real)) <= max(2, 0.15 * min(real))


def test_a_wider_window_mixes_better() -> None:
    means = [mixing(course(window=window)).mean for window in (1, 4, 16)]
    assert means == sorted(means)
    assert means[2] > 2 * means[0]


def test_a_run_that_ends_within_an_epoch() -> None:
    half = Course(sources=(Source(name="a", sizes=np.full(64, 50), repeat=0.5),), seed=0, window=4, lanes=4, total=64)
    assert epoch_steps(half) == 25
    assert egress(half, sizes(half), 4).first == pytest.approx(0.5, abs=0.07)


def test_nodes_that_do_not_divide_the_batch() -> None:
    with pytest.raises(UsageError, match="64 samples a step cannot be dealt evenly to 3 nodes"):
        egress(course(), sizes(course()), 3)


def test_the_command_shows_a_row_for_each_window(tmp_path: Path) -> None:
    shards = tuple(Shard(name=f"{n:05d}", samples=100, bytes=10**9, sha256="0" * 64) for n in range(64))
    manifest.write(tmp_path, Manifest(kind="latents", shards=shards))
    command = [sys.executable, "-m", "bigdiff.data.egress", str(tmp_path), "--nodes", "4", "--batch", "64"]
    done = subprocess.run([*command, "--window", "2", "8"], capture_output=True, text=True, check=True)
    assert "6,400 samples in 64 shards on 4 nodes, 4 lanes" in done.stdout
    assert "2 GB" in done.stdout and "8 GB" in done.stdout
    wrong = subprocess.run([*command, "--lanes", "3"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: 64 samples a step cannot be dealt to 3 lanes")
