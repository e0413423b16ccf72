import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.data.order import Order

PINNED = [(1, 2), (2, 1), (1, 1), (1, 3), (2, 0), (1, 0), (0, 2), (0, 1), (0, 0)]
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=12).map(tuple)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 2**64 - 1), st.integers(1, 14), st.integers(0, 3))
def test_every_sample_once_an_epoch(sizes: tuple[int, ...], seed: int, window: int, epoch: int) -> None:
    order = Order(sizes=sizes, seed=seed, window=window)
    shards, rows = order.locate(epoch * order.samples, order.samples)
    seen = Counter(zip(shards.tolist(), rows.tolist(), strict=True))
    assert seen == Counter({(shard, row): 1 for shard, size in enumerate(sizes) for row in range(size)})


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 2**32), st.integers(1, 14), st.data())
def test_any_cut_reads_the_same_order(sizes: tuple[int, ...], seed: int, window: int, data: st.DataObject) -> None:
    order = Order(sizes=sizes, seed=seed, window=window)
    count = 2 * order.samples + 3
    whole = np.stack(order.locate(0, count))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    bounds = [0, *cuts, count]
    parts = [np.stack(order.locate(low, high - low)) for low, high in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_a_window_stays_together_and_epochs_differ() -> None:
    order = Order(sizes=(10,) * 8, seed=1, window=2)
    first, second = (order.locate(epoch * 80, 80) for epoch in (0, 1))
    assert not np.array_equal(np.stack(first), np.stack(second))
    assert [len(set(first[0][start : start + 20].tolist())) for start in range(0, 80, 20)] == [2, 2, 2, 2]


def test_the_order_is_pinned() -> None:
    # A change here is a change of every run's data: it would break the resume of runs made before.
    order = Order(sizes=(3, 4, 2), seed=7, window=2)
    shards, rows = order.locate(0, 9)
    assert list(zip(shards.tolist(), rows.tolist(), strict=True)) == PINNED


def test_a_far_seek_is_cheap_in_memory() -> None:
    order = Order(sizes=(1000,) * 2000, seed=0, window=4)
    far = 10**9 * 2 + 123_456
    shards, _ = order.locate(far, 64)
    assert len(set(shards.tolist())) <= 8


@pytest.mark.parametrize("window", [1, 3, 8])
def test_shuffled_inside_the_window(window: int) -> None:
    order = Order(sizes=(50,) * 8, seed=0, window=window)
    _, rows = order.locate(0, 50 * window)
    ascending = int((np.diff(rows) == 1).sum())
    assert ascending < 10
