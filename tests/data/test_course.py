import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bigdiff.config.errors import UsageError
from bigdiff.data.course import Course, Picks
from bigdiff.data.mixture import Source
from bigdiff.data.order import Order

STEPS = 60  # looked at in random courses: some to many passes
LAW = settings(max_examples=150, deadline=None)


@st.composite
def sources(draw: st.DrawFn) -> tuple[Source, ...]:
    number = draw(st.integers(1, 3))
    shared = draw(st.integers(0, number - 1))  # how many have a proportion
    found = []
    for index in range(number):
        sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
        names = draw(st.sampled_from(["", "x", "xy", "xyz"]))
        buckets = tuple(draw(st.sampled_from(names)) for _ in sizes) if names else ()
        shares: dict[str, Any] = {"proportion": draw(st.sampled_from([0.05, 0.3]))} if index < shared else {}
        shares["repeat"] = draw(st.sampled_from([None, None, 0.5, 1, 2.5]))
        shares["until"] = draw(st.sampled_from([None, None, 50, 333]))
        found.append(Source(name=f"set {index}", sizes=np.array(sizes), buckets=buckets, **shares))
    return tuple(found)


@st.composite
def courses(draw: st.DrawFn) -> Course:
    lanes = draw(st.integers(1, 4))
    settled = {
        "sources": draw(sources()),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "window": draw(st.integers(1, 4)),
        "lanes": lanes,
        "total": lanes * draw(st.integers(1, 7)),
    }
    try:
        return Course(**settled)  # type: ignore[arg-type]
    except UsageError as error:
        assume("gives nothing before until" not in str(error))
        raise


def again(course: Course) -> Course:
    return Course(
        sources=course.sources, seed=course.seed, window=course.window, lanes=course.lanes, total=course.total
    )


def last(course: Course) -> int:
    return min(STEPS, STEPS if course.steps is None else course.steps)


def samples(picks: Picks) -> list[tuple[int, int, int]]:
    return list(zip(picks.sources.tolist(), picks.shards.tolist(), picks.rows.tolist(), strict=True))


def batches(course: Course) -> list[list[tuple[int, int, int]]]:
    return [samples(course.locate(step, 0, course.total)) for step in range(last(course))]


@LAW
@given(courses())
def test_a_cell_gives_each_sample_exactly_once_a_pass_and_nothing_is_dropped(course: Course) -> None:
    seen = Counter(sample for batch in batches(course) for sample in batch)
    for cell in course.cells:
        every = [
            seen[cell.source, shard, row]
            for shard, size in zip(cell.shards.tolist(), cell.sizes.tolist(), strict=True)
            for row in range(size)
        ]
        assert max(every) - min(every) <= 1  # a pass is whole before a sample comes up again
        assert min(every) == sum(every) // cell.samples
    assert sum(seen.values()) == last(course) * course.total


@LAW
@given(courses())
def test_every_step_is_in_one_bucket(course: Course) -> None:
    for step in range(last(course)):
        picks = course.locate(step, 0, course.total)
        names = {
            (course.sources[source].buckets or [""] * 99)[shard]
            for source, shard in zip(picks.sources.tolist(), picks.shards.tolist(), strict=True)
        }
        assert names == {picks.bucket} == {course.bucket_of(step)}


@LAW
@given(courses(), st.data())
def test_any_number_of_ranks_reads_the_same_batch(course: Course, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, last(course) - 1))
    whole = samples(course.locate(step, 0, course.total))
    cuts = sorted(data.draw(st.lists(st.integers(0, course.total), max_size=5)))
    bounds = [0, *cuts, course.total]
    parts = [samples(course.locate(step, low, high)) for low, high in itertools.pairwise(bounds)]
    assert [sample for part in parts for sample in part] == whole


@settings(LAW, max_examples=60)
@given(courses(), st.randoms(use_true_random=False))
def test_a_step_depends_on_nothing_that_was_asked_before(course: Course, random: Any) -> None:
    steps = list(range(last(course)))
    expected = batches(course)
    random.shuffle(steps)
    other = again(course)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: samples(other.locate(step, 0, other.total)), steps))
    assert found == [expected[step] for step in steps]
    assert other.fingerprint == course.fingerprint


@LAW
@given(courses())
def test_given_is_what_was_read(course: Course) -> None:
    counts = [0] * len(course.sources)
    for step, batch in enumerate(batches(course)):
        assert course.given(step) == tuple(counts)
        for source, _, _ in batch:
            counts[source] += 1
    assert course.given(last(course)) == tuple(counts)


@LAW
@given(courses(), st.data())
def test_a_sample_is_found_at_all_its_positions(course: Course, data: st.DataObject) -> None:
    read = [sample for batch in batches(course) for sample in batch]
    source = data.draw(st.integers(0, len(course.sources) - 1))
    shard = data.draw(st.integers(0, len(course.sources[source].sizes) - 1))
    row = data.draw(st.integers(0, int(course.sources[source].sizes[shard]) - 1))
    until = data.draw(st.integers(0, len(read)))
    expected = [position for position in range(until) if read[position] == (source, shard, row)]
    assert course.find(source, shard, row, until) == expected


@LAW
@given(courses(), st.data())
def test_a_substitute_is_of_the_same_source_and_bucket(course: Course, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, last(course) * course.total - 1))
    step, offset = divmod(position, course.total)
    source, _, _ = samples(course.locate(step, offset, offset + 1))[0]
    for attempt in (1, 2, 9, 40):
        found, shard, row = course.substitute(position, attempt)
        assert (found, shard, row) == again(course).substitute(position, attempt)
        assert found == source
        assert row < course.sources[source].sizes[shard]
        assert (course.sources[source].buckets or [""] * 99)[shard] == course.bucket_of(step)


@LAW
@given(courses())
def test_until_and_repeat_are_kept_to_within_a_step(course: Course) -> None:
    seen = Counter((source, shard) for batch in batches(course) for source, shard, _ in batch)
    for step, batch in enumerate(batches(course)):
        for source in {source for source, _, _ in batch}:
            until = course.sources[source].until
            assert until is None or step * course.total < until
    for cell in course.cells:
        read = sum(seen[cell.source, shard] for shard in cell.shards.tolist())
        assert cell.limit is None or read < cell.limit + course.total
        if course.steps is not None and course.steps <= STEPS and course.sources[cell.source].until is None:
            assert cell.limit is not None and read >= cell.limit


@LAW
@given(courses(), st.data())
def test_ahead_holds_what_is_read_until_a_window_ends(course: Course, data: st.DataObject) -> None:
    nodes = data.draw(st.sampled_from([n for n in range(1, course.total + 1) if course.total % n == 0]))
    node = data.draw(st.integers(0, nodes - 1))
    begin, end = node * course.total // nodes, (node + 1) * course.total // nodes
    start, windows = data.draw(st.integers(0, last(course) - 1)), data.draw(st.integers(0, 2))
    chains = [list(itertools.islice(chain, windows + 2)) for chain in course.windows(start, begin, end)]
    horizon = min([last(course), *(chain[-1].step for chain in chains if len(chain) == windows + 2)])
    ahead = course.ahead(start, begin, end, windows)
    assert len(set(ahead)) == len(ahead)
    for step in range(start, horizon):
        read = {(source, shard) for source, shard, _ in samples(course.locate(step, begin, end))}
        assert read <= set(ahead)


@LAW
@given(courses(), st.data())
def test_until_the_turnover_a_slice_reads_from_the_windows_it_is_in(course: Course, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, last(course) - 1))
    turn = course.turnover(start, 0, course.total)
    assume(turn is None or turn > start + 1 < last(course))
    current = set(course.ahead(start + 1, 0, course.total, 0)) if start + 1 < last(course) else set()
    for step in range(start + 1, min(last(course), turn or last(course))):
        assert {(source, shard) for source, shard, _ in samples(course.locate(step, 0, course.total))} <= current


@LAW
@given(courses())
def test_a_window_is_needed_exactly_when_its_first_sample_is_read(course: Course) -> None:
    for chain in course.windows(0, 0, course.total):
        for need in itertools.takewhile(lambda need: need.step < last(course), itertools.islice(chain, 4)):
            turns = course.total // course.lanes
            row = samples(course.locate(need.step, need.lane * turns, (need.lane + 1) * turns))
            assert any(source == need.source and shard in need.shards for source, shard, _ in row)
            assert course.turns(need.step)[need.cell] <= need.turn < course.turns(need.step + 1)[need.cell]


@LAW
@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 6), st.data())
def test_one_source_in_one_bucket_is_its_order(sizes: list[int], lanes: int, turns: int, data: st.DataObject) -> None:
    total = lanes * turns
    course = Course(sources=(Source(name="a", sizes=np.array(sizes)),), seed=3, window=2, lanes=lanes, total=total)
    order = Order(sizes=np.array(sizes), seed=3, window=2, lanes=lanes, chunk=turns)
    step = data.draw(st.integers(0, 10**6))
    begin = data.draw(st.integers(0, total))
    picks = course.locate(step, begin, total)
    shards, rows = order.locate(step * total + begin, total - begin)
    assert np.array_equal(picks.shards, shards)
    assert np.array_equal(picks.rows, rows)
    assert not picks.sources.any()


def mixed(**changes: Any) -> Course:
    settled: dict[str, Any] = {
        "sources": (
            Source(name="a", sizes=np.full(48, 25), buckets=("x", "y", "y") * 16, proportion=0.3),
            Source(name="b", sizes=np.full(32, 50), buckets=("y", "z") * 16, upsample=2.0),
            Source(name="c", sizes=np.full(16, 50)),
        ),
        "seed": 5,
        "window": 4,
        "lanes": 4,
        "total": 32,
    }
    return Course(**{**settled, **changes})


def test_sources_and_buckets_are_within_the_stated_bounds_at_every_step() -> None:
    course = mixed()
    rates = [Fraction(3, 10), Fraction(56, 100), Fraction(14, 100)]
    # The bucket of a step is off by less than 6 steps, which counts by a source's part of the bucket; inside a bucket a
    # cell is off by less than 2 turns, that is 2 x lanes samples.
    inside = {"": [0, 0, 1], "x": [1, 0, 0], "y": [0.2 / 0.48, 0.28 / 0.48, 0], "z": [0, 1, 0]}
    for step in range(0, 4000, 7):
        for source, (count, rate) in enumerate(zip(course.given(step), rates, strict=True)):
            bound = sum(
                6 * course.total * part[source] + 2 * course.lanes * (part[source] > 0) for part in inside.values()
            )
            assert abs(count - step * course.total * rate) < bound


def test_two_sources_in_one_bucket_are_within_two_samples_a_lane_at_every_step() -> None:
    both = (Source(name="a", sizes=np.full(9, 30), proportion=0.1), Source(name="b", sizes=np.full(9, 30)))
    course = mixed(sources=both)
    for step in range(3000):
        assert abs(course.given(step)[0] - step * course.total * 0.1) < 2 * course.lanes


def test_sources_alternate_inside_a_batch() -> None:
    both = (Source(name="a", sizes=np.full(9, 30)), Source(name="b", sizes=np.full(9, 30)))
    picks = mixed(sources=both).locate(11, 0, 32)
    assert [sorted(pair) for pair in picks.sources.reshape(-1, 2).tolist()] == [[0, 1]] * 16


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_node_reads_its_own_shards(nodes: int) -> None:
    course = mixed(window=2)
    share = course.total // nodes
    steps = sum(source.samples for source in course.sources) // course.total
    shards = sum(len(source.sizes) for source in course.sources)
    for node in range(nodes):
        read = {
            (source, shard)
            for step in range(steps // 2)  # within each cell's first pass
            for source, shard, _ in samples(course.locate(step, node * share, (node + 1) * share))
        }
        # a lane's first and last shard of each cell may be its neighbour's too
        assert len(read) <= shards / nodes + len(course.cells) * course.lanes / nodes


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 6},
    "window": {"window": 5},
    "lanes": {"lanes": 8},
    "total": {"total": 36},
    "fewer sources": {"sources": mixed().sources[1:]},
    "their order": {"sources": mixed().sources[::-1]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sizes": {"sizes": np.array([24, *[25] * 47])},
    "order of sizes": {"sizes": np.array([20, 30, *[25] * 46])},
    "buckets": {"buckets": ("y", "x", "y") * 16},
    "names of buckets": {"buckets": ("x", "y", "w") * 16},
    "proportion": {"proportion": 0.31},
    "no proportion": {"proportion": None, "upsample": 1.5},
    "repeat": {"repeat": 7.0},
    "until": {"until": 10_000},
}


def test_the_fingerprint_changes_with_all_that_fixes_the_order() -> None:
    first, *others = mixed().sources
    changed = [mixed(**change) for change in CHANGES.values()]
    fields = ("name", "sizes", "buckets", "proportion", "upsample", "repeat", "until")
    kept = {name: getattr(first, name) for name in fields}
    changed += [mixed(sources=(Source(**{**kept, **change}), *others)) for change in SETTINGS.values()]
    prints = [mixed().fingerprint, *(course.fingerprint for course in changed)]
    assert len(set(prints)) == len(prints)


def test_a_set_may_move() -> None:
    first, *others = mixed().sources
    moved = replace_name(first, "elsewhere")
    assert mixed(sources=(moved, *others)).fingerprint == mixed().fingerprint


def replace_name(source: Source, name: str) -> Source:
    return replace(source, name=name)


def test_asking_for_more_than_there_is() -> None:
    course = mixed(sources=(Source(name="a", sizes=np.array([100]), repeat=1),))
    assert course.steps == 4
    assert course.given(4) == course.given(99) == (128,)
    for ask in (lambda: course.locate(4, 0, 1), lambda: course.bucket_of(4), lambda: course.substitute(128, 1)):
        with pytest.raises(
            UsageError, match=r"nothing is left to draw at step 4: .* give 4 steps of 32 samples; raise"
        ):
            ask()


@pytest.mark.parametrize("change", [{"lanes": 5}, {"lanes": 0}, {"lanes": 64}, {"total": 0}, {"window": 0}])
def test_a_batch_that_cannot_be_dealt_to_the_lanes(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="lanes that divides the samples of a step"):
        mixed(**change)


def test_the_course_is_pinned() -> None:
    # A change here is a change of every run's data: raise course.FORMAT with it.
    assert [samples(mixed().locate(step, 6, 9)) for step in (0, 1, 977)] == [
        [(1, 15, 40), (1, 11, 32), (1, 3, 40)],
        [(0, 6, 1), (0, 27, 1), (0, 45, 22)],
        [(1, 8, 9), (0, 14, 6), (0, 13, 13)],
    ]
