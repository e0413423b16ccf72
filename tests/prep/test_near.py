from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bigdiff.config.errors import RunError
from bigdiff.prep import near
from bigdiff.prep.phash import distances, is_flat

BALANCED = 0x00000000FFFFFFFF  # 32 bits set: not flat
flips = some.frozensets(some.integers(0, 63), max_size=6)


@pytest.fixture(scope="module")
def base() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value


def flipped(value: int, bits: frozenset[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return signed(value)


def brute(one: list[int], other: list[int], distance: int) -> set[tuple[int, int]]:
    left, right = np.array(one, np.int64), np.array(other, np.int64)
    found = np.argwhere(distances(left[:, None], right[None]) <= distance)
    return {(one[i], other[j]) for i, j in found.tolist()}


def hashes(base: duckdb.DuckDBPyConnection, name: str, values: list[int]) -> None:
    base.register("given", pa.table({"hash": pa.array(sorted({*values}), pa.int64())}))
    base.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given")


def found(base: duckdb.DuckDBPyConnection, left: str, right: str, distance: int) -> set[tuple[int, int]]:
    near.pairs(base, left, right, distance, "found")
    rows = base.execute("SELECT * FROM found").fetchall()
    assert len(rows) == len({*rows})
    return {*rows}


# Seeds far apart with edits of each: pairs at every distance up to twelve.
alike = some.lists(some.tuples(some.integers(0, 2), flips), max_size=24).map(
    lambda drawn: sorted({flipped((0xF0F0F0F0F0F0F0F0, BALANCED, 2**63 | 0xABC)[seed], bits) for seed, bits in drawn})
)


@settings(max_examples=25, deadline=None)
@given(alike, some.integers(0, 8))
def test_every_pair_is_found_once(base: duckdb.DuckDBPyConnection, values: list[int], distance: int) -> None:
    hashes(base, "mine", values)
    expected = {(one, other) for one, other in brute(values, values, distance) if one < other}
    assert found(base, "mine", "mine", distance) == expected


@settings(max_examples=10, deadline=None)
@given(alike, alike, some.integers(0, 8))
def test_every_pair_of_two_sets_is_found(
    base: duckdb.DuckDBPyConnection, left: list[int], right: list[int], distance: int
) -> None:
    hashes(base, "mine", left)
    hashes(base, "theirs", right)
    assert found(base, "mine", "theirs", distance) == brute(left, right, distance)


@pytest.mark.parametrize("distance", [1, 4])
@pytest.mark.parametrize("both", [True, False])
def test_crowds_are_searched_too(
    base: duckdb.DuckDBPyConnection, distance: int, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "_CROWD", 20)
    random = np.random.default_rng(0)
    values = [signed(int(value)) for value in random.integers(0, 2**14, 600)]  # all agree in 50 bits
    hashes(base, "mine", values)
    hashes(base, "theirs", values[:200])
    every, some_of_them = sorted({*values}), sorted({*values[:200]})
    if both:
        assert found(base, "mine", "mine", distance) == {p for p in brute(every, every, distance) if p[0] < p[1]}
    else:
        assert found(base, "mine", "theirs", distance) == brute(every, some_of_them, distance)


def test_what_would_not_end_is_refused(base: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes(base, "mine", list(range(300)))
    with monkeypatch.context() as changed:
        changed.setattr(near, "MOST_PAIRS", 100)
        with pytest.raises(RunError, match="more than 100 pairs of pictures are within 3 bits: lower"):
            near.pairs(base, "mine", "mine", 3, "found")
    monkeypatch.setattr(near, "MOST_COMPARISONS", 100)
    with pytest.raises(RunError, match="lower the distance"):
        near.pairs(base, "mine", "mine", 3, "found")


def test_bands_share_the_bits_out() -> None:
    for count in range(1, 13):
        masks = near.bands(count)
        assert len(masks) == count
        assert sum(masks) == 2**64 - 1
        assert {mask.bit_count() for mask in masks} <= {64 // count, -(-64 // count)}


def samples(base: duckdb.DuckDBPyConnection, values: list[int], ranks: list[int]) -> None:
    columns = {"row": list(range(100, 100 + len(values))), "rank": ranks, "phash": values}
    base.register("given", pa.table({name: pa.array(column, pa.int64()) for name, column in columns.items()}))
    base.execute("CREATE OR REPLACE TABLE samples AS SELECT * FROM given")


def one_after_the_other(values: list[int], ranks: list[int], distance: int) -> dict[int, int]:
    kept: list[int] = []
    gone = {}
    for index in sorted(range(len(values)), key=ranks.__getitem__):
        near_ones = [
            other
            for other in kept
            if not is_flat(values[index])
            and not is_flat(values[other])
            and bin((values[index] ^ values[other]) & (2**64 - 1)).count("1") <= distance
        ]
        if near_ones:
            gone[100 + index] = 100 + near_ones[0]
        else:
            kept.append(index)
    return gone


@settings(max_examples=25, deadline=None)
@given(some.lists(some.tuples(some.integers(0, 2), flips), max_size=24), some.integers(0, 4), some.randoms())
def test_a_star_is_what_one_after_the_other_would_drop(
    base: duckdb.DuckDBPyConnection, drawn: list[tuple[int, frozenset[int]]], distance: int, random: object
) -> None:
    values = [flipped((BALANCED, 2**63 | 0xFFFFFF0F, 2**63)[seed], bits) for seed, bits in drawn]
    ranks = list(range(1, len(values) + 1))
    random.shuffle(ranks)  # type: ignore[attr-defined]
    samples(base, values, ranks)
    seen = near.search(base, "samples", distance)
    assert seen.flat == sum(is_flat(value) for value in values)
    assert seen.hashes == len({value for value in values if not is_flat(value)})
    near.stars(base, "samples")
    dropped = dict(base.execute("SELECT row, of_row FROM near_stars").fetchall())
    assert dropped == one_after_the_other(values, ranks, distance)
    near.clusters(base, "samples")
    clusters = dict(base.execute("SELECT row, cluster FROM near_clusters").fetchall())
    assert sorted(clusters) == list(range(100, 100 + len(values)))
    assert all(clusters[row] == clusters[kept] for row, kept in dropped.items())
    assert all(cluster <= row and clusters[cluster] == cluster for row, cluster in clusters.items())


def test_a_chain_is_one_cluster_of_which_what_is_far_stays(base: duckdb.DuckDBPyConnection) -> None:
    values = [flipped(BALANCED, frozenset(range(step))) for step in (0, 2, 4, 6)]
    samples(base, values, [1, 2, 3, 4])
    near.search(base, "samples", 2)
    near.clusters(base, "samples")
    near.stars(base, "samples")
    assert base.execute("SELECT cluster FROM near_clusters").fetchall() == [(100,)] * 4
    assert base.execute("SELECT * FROM near_stars ORDER BY row").fetchall() == [(101, 100), (103, 102)]


def test_flat_pictures_are_never_near(base: duckdb.DuckDBPyConnection) -> None:
    samples(base, [-(2**63), -(2**63), 0, BALANCED, BALANCED], [1, 2, 3, 4, 5])
    assert near.search(base, "samples", 4) == near.Found(hashes=1, flat=3, pairs=0)
    near.stars(base, "samples")
    near.clusters(base, "samples")
    assert base.execute("SELECT * FROM near_stars").fetchall() == [(104, 103)]
    assert base.execute("SELECT cluster FROM near_clusters ORDER BY row").fetchall() == [
        (100,), (101,), (102,), (103,), (103,),
    ]  # fmt: skip
