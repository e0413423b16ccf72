from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bigdiff.config.dedup import Dedup
from bigdiff.config.errors import UsageError
from bigdiff.prep.dedup import CONTENT, NEAR, SAME, Linked, find

FAR = (0x00000000FFFFFFFF, 0x0F0F0F0F0F0F0F0F, 0x3333333333333333)
FLAT = 1
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "sha256": pa.string(),
        "phash": pa.int64(),
        "original_width": pa.int64(),
        "original_height": pa.int64(),
        "aesthetic": pa.float64(),
        "unit": pa.string(),
        "position": pa.int64(),
    }
)
Samples = list[dict[str, Any]]


@pytest.fixture
def base() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def sample(row: int, sha256: str, phash: int, **other: Any) -> dict[str, Any]:
    return {"original_width": 10, "original_height": 10, "row": row, "sha256": sha256, "phash": phash, **other}


def found(
    base: duckdb.DuckDBPyConnection, samples: Samples, dedup: Dedup, folder: Path | None = None
) -> tuple[dict[int, tuple[str, int]], dict[int, int], Any]:
    base.register("given", pa.Table.from_pylist(samples, SCHEMA))
    outcome = find(base, "given", dedup, folder)
    gone = {row: (cause, of) for row, cause, of in base.execute("SELECT * FROM duplicates").fetchall()}
    sizes = dict(base.execute("SELECT * FROM cluster_sizes").fetchall())
    assert {*gone} | {*sizes} == {each["row"] for each in samples}
    assert all(of in sizes for _, of in gone.values())
    assert sum(sizes.values()) == len(samples) == outcome.samples
    assert outcome.kept == len(sizes)
    return gone, sizes, outcome


def test_equal_bytes_are_one_without_any_setting(base: duckdb.DuckDBPyConnection) -> None:
    samples = [sample(4, "a", FLAT), sample(2, "b", FLAT), sample(9, "a", FLAT), sample(1, "a", FLAT)]
    gone, sizes, outcome = found(base, samples, Dedup())
    assert gone == {4: (SAME, 1), 9: (SAME, 1)}
    assert sizes == {1: 3, 2: 1}
    assert (outcome.same, outcome.near, outcome.content, outcome.linked) == (2, 0, 0, None)


def test_near_pictures_are_one_and_copies_follow_to_what_stays(base: duckdb.DuckDBPyConnection) -> None:
    samples = [
        sample(0, "a", FAR[0]),
        sample(1, "b", FAR[0] ^ 0b1),
        sample(2, "b", FAR[0] ^ 0b1),  # a copy of what goes
        sample(3, "c", FAR[0] ^ 0b111),  # linked by a chain alone
        sample(4, "d", FAR[1]),
        sample(5, "e", FLAT),
        sample(6, "f", FLAT),
    ]
    gone, sizes, outcome = found(base, samples, Dedup(near_distance=2))
    assert gone == {1: (NEAR, 0), 2: (SAME, 0)}
    assert sizes == {0: 3, 3: 1, 4: 1, 5: 1, 6: 1}
    assert outcome.linked == Linked(hashes=4, flat=2, clusters=1, largest=3, chained=1)
    assert len(outcome.warnings()) == 1
    assert "2 of 6 pictures are of one colour" in outcome.warnings()[0]
    assert found(base, samples, Dedup())[0] == {2: (SAME, 1)}


SIZES = [
    sample(0, "a", FAR[0], original_width=100, original_height=10, aesthetic=5.0),
    sample(1, "b", FAR[0], original_width=64, original_height=64, aesthetic=None),
    sample(2, "c", FAR[0], original_width=64, original_height=64, aesthetic=float("nan")),
    sample(3, "d", FAR[0] ^ 1, original_width=1, original_height=1, aesthetic=5.5),
]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 0), ({"keep": "largest"}, 1), ({"keep": "highest", "keep_by": "aesthetic"}, 3)],
)
def test_which_stays_can_be_chosen(base: duckdb.DuckDBPyConnection, settings: dict[str, Any], kept: int) -> None:
    gone, sizes, outcome = found(base, SIZES, Dedup(near_distance=1, **settings))
    assert sizes == {kept: 4}
    assert {of for _, of in gone.values()} == {kept}
    assert outcome.warnings()[0].startswith("3 of 4 pictures are nearly the same as another's")


def test_the_score_must_be_there(base: duckdb.DuckDBPyConnection) -> None:
    base.register("given", pa.Table.from_pylist(SIZES, SCHEMA))
    with pytest.raises(UsageError, match="keep_by is 'beauty', which the samples do not have: they have aesthetic"):
        find(base, "given", Dedup(keep="highest", keep_by="beauty"))


def test_content_is_compared_among_what_is_left(base: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    east, north, north_east = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
    np.save(tmp_path / "u.npy", np.array([east, north], np.float16))
    np.save(tmp_path / "v.npy", np.array([north, north_east, east], np.float16))
    samples = [
        sample(3, "c", FAR[2], unit="v", position=2),  # the content of 0
        sample(0, "a", FAR[0], unit="u", position=0),
        sample(2, "b", FAR[1] ^ 1, unit="v", position=1),  # near 1, and its content has another direction
        sample(1, "b1", FAR[1], unit="u", position=1),
        sample(4, "c", FAR[2], unit="v", position=0),  # the same bytes as 3
    ]
    gone, sizes, outcome = found(base, samples, Dedup(near_distance=1, embedding_above=0.9), tmp_path)
    assert gone == {2: (NEAR, 1), 3: (CONTENT, 0), 4: (SAME, 0)}
    assert sizes == {0: 3, 1: 2}
    assert outcome.compared.absent == 0


@settings(max_examples=8, deadline=None)
@given(
    some.lists(some.tuples(some.sampled_from("abcdef"), some.integers(0, 3)), min_size=1, max_size=10), some.randoms()
)
def test_the_order_of_the_input_and_the_threads_change_nothing(drawn: list[tuple[str, int]], random: Any) -> None:
    hashes = {name: FAR[0] ^ (1 << number) ^ (7 if number % 2 else 0) for number, name in enumerate("abcdef")}
    samples = [
        sample(row, name, hashes[name], original_width=size, unit="u", position=row)
        for row, (name, size) in enumerate(drawn)
    ]
    shuffled = random.sample(samples, len(samples))
    outcomes = []
    for threads, order in ((1, samples), (4, shuffled), (2, samples[::-1])):
        with duckdb.connect(config={"threads": threads}) as connection:
            outcomes.append(found(connection, order, Dedup(near_distance=2, keep="largest")))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    ranks = sorted(range(len(samples)), key=lambda row: (-samples[row]["original_width"], row))
    first = {name: next(row for row in ranks if samples[row]["sha256"] == name) for name in {s[0] for s in drawn}}
    kept: list[str] = []
    for name in sorted(first, key=lambda name: ranks.index(first[name])):
        if all((hashes[name] ^ hashes[other]).bit_count() > 2 for other in kept):
            kept.append(name)
    assert sorted(outcomes[0][1]) == sorted(first[name] for name in kept)


def test_every_order_of_a_chain_keeps_what_is_best(base: duckdb.DuckDBPyConnection) -> None:
    values = [FAR[0], FAR[0] ^ 0b11, FAR[0] ^ 0b1111]
    for order in permutations(range(3)):
        samples = [sample(order[at], str(at), values[at]) for at in range(3)]
        gone, _, _ = found(base, samples, Dedup(near_distance=2))
        assert 0 not in gone
        assert len(gone) == (2 if order[1] == 0 else 1)
