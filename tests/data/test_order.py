import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.data.order import Order

PINNED = [(1, 2), (2, 1), (1, 1), (1, 3), (2, 0), (1, 0), (0, 2), (0, 1), (0, 0)]
LANED = [(1, 0), (0, 0), (1, 3), (1, 1)]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any order of a small pool; empty shards, lanes without a sample and windows over the whole pool included."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any))
    return Order(
        sizes=np.array(sizes),
        seed=draw(st.integers(0, 2**64 - 1)),
        window=draw(st.integers(1, 14)),
        lanes=draw(st.integers(1, 6)),
        chunk=draw(st.one_of(st.integers(1, 6), st.integers(16, 40))),
        stream=draw(st.integers(0, 3)),
    )


def pairs(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(orders(), st.integers(0, 3))
def test_every_sample_once_an_epoch(order: Order, epoch: int) -> None:
    seen = Counter(pairs(order.locate(epoch * order.samples, order.samples)))
    assert seen == Counter({(shard, row): 1 for shard, size in enumerate(order.sizes) for row in range(size)})


@settings(max_examples=300, deadline=None)
@given(orders(), st.data())
def test_any_cut_reads_the_same_order(order: Order, data: st.DataObject) -> None:
    count = 2 * order.samples + 3
    whole = np.stack(order.locate(0, count))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    bounds = [0, *cuts, count]
    parts = [np.stack(order.locate(low, high - low)) for low, high in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    some = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    assert np.array_equal(np.stack(order.at(some)), whole[:, some])


@settings(max_examples=200, deadline=None)
@given(orders(), st.integers(0, 4), st.data())
def test_find_is_the_inverse(order: Order, epoch: int, data: st.DataObject) -> None:
    position = epoch * order.samples + data.draw(st.integers(0, order.samples - 1))
    ((shard, row),) = pairs(order.locate(position, 1))
    assert order.find(epoch, shard, row) == position


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_a_window_holds_what_is_read_until_the_next_begins(order: Order, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 3 * order.samples))
    behind = order.next_window(position)
    lane = order.lane_of(np.array([position]))
    between = np.arange(position, behind)
    mine = between[order.lane_of(between) == lane]
    assert behind > position and order.lane_of(np.array([behind])) == lane
    assert set(order.at(mine)[0].tolist()) <= set(order.window_shards(position).tolist())


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_substitutes_are_samples_first_of_the_window_then_of_all(order: Order, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 3 * order.samples))
    (stood,) = pairs(order.locate(position, 1))
    for attempt in (1, 2, 8, 9, 40):
        shard, row = found = order.substitute(position, attempt)
        assert 0 <= row < order.sizes[shard]
        assert found == order.substitute(position, attempt)
        if attempt <= 8:
            window = order.window_shards(position)
            assert shard in window
            assert found != stood or order.next_window(position) - position <= 1 or order.lanes > 1 or len(window) == 1
    far = {order.substitute(position, attempt) for attempt in range(9, 9 + 40 * order.samples)}
    assert len(far) == order.samples


@pytest.mark.parametrize(("nodes", "lanes"), [(1, 8), (2, 8), (4, 8), (8, 8), (4, 16)])
def test_nodes_read_their_own_shards(nodes: int, lanes: int) -> None:
    """With a batch of 64: node n reads offsets [n/P, (n+1)/P) of each; the shards at the lanes' ends are shared."""
    order = Order(sizes=np.full(320, 40), seed=5, window=4, lanes=lanes, chunk=64 // lanes)
    shards = order.locate(0, order.samples // 64 * 64)[0].reshape(-1, nodes, 64 // nodes)
    read = [len(np.unique(shards[:, node])) for node in range(nodes)]
    assert sum(read) <= 320 + lanes
    assert max(read) <= 320 / nodes + lanes


def test_a_window_stays_together_and_epochs_differ() -> None:
    order = Order(sizes=np.full(8, 10), seed=1, window=2)
    first, second = (order.locate(epoch * 80, 80) for epoch in (0, 1))
    assert not np.array_equal(np.stack(first), np.stack(second))
    assert [len(set(first[0][start : start + 20].tolist())) for start in range(0, 80, 20)] == [2, 2, 2, 2]


def test_seeds_and_streams_draw_other_orders() -> None:
    drawn = [
        tuple(pairs(Order(sizes=np.full(8, 10), seed=seed, window=4, stream=stream).locate(0, 80)))
        for seed, stream in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(drawn)) == 3


def test_the_order_is_pinned() -> None:
    # A change here is a change of every run's data: it would break the resume of runs made before.
    order = Order(sizes=np.array((3, 4, 2)), seed=7, window=2)
    assert pairs(order.locate(0, 9)) == PINNED
    laned = Order(sizes=np.array((3, 4, 2)), seed=7, window=2, lanes=2, chunk=2, stream=1)
    assert pairs(laned.locate(9, 4)) == LANED


def test_threads_see_the_same_order() -> None:
    order = Order(sizes=np.full(40, 50), seed=3, window=3, lanes=2, chunk=16)
    starts = list(range(0, 3 * order.samples, 7)) * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: pairs(order.locate(start, 7)), starts))
    fresh = Order(sizes=np.full(40, 50), seed=3, window=3, lanes=2, chunk=16)
    assert found == [pairs(fresh.locate(start, 7)) for start in starts]


def test_a_far_seek_is_cheap_in_memory() -> None:
    order = Order(sizes=np.full(2000, 1000), seed=0, window=4)
    far = 10**9 * 2 + 123_456
    shards, _ = order.locate(far, 64)
    assert len(set(shards.tolist())) <= 8


@pytest.mark.parametrize("window", [1, 3, 8])
def test_shuffled_inside_the_window(window: int) -> None:
    order = Order(sizes=np.full(8, 50), seed=0, window=window)
    _, rows = order.locate(0, 50 * window)
    ascending = int((np.diff(rows) == 1).sum())
    assert ascending < 10
