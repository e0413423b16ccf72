from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from bigdiff.config.errors import RunError
from bigdiff.prep import content
from bigdiff.prep.content import installed, stars

ABOVE = 0.9


@pytest.fixture
def base() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def written(base: duckdb.DuckDBPyConnection, folder: Path, values: np.ndarray, ranks: list[int], size: int) -> None:
    units = [f"unit-{number // size}" for number in range(len(values))]
    for unit in sorted({*units}):
        np.save(folder / f"{unit}.npy", values[[each == unit for each in units]].astype(np.float16))
    columns = {
        "row": pa.array([1000 + number for number in range(len(values))], pa.int64()),
        "rank": pa.array(ranks, pa.int64()),
        "unit": units,
        "position": pa.array([number % size for number in range(len(values))], pa.int64()),
    }
    base.register("given", pa.table(columns))


def clustered(count: int, dimensions: int = 24) -> np.ndarray:
    """Unit vectors, a third of them near another."""
    random = np.random.default_rng(0)
    values = random.normal(size=(count, dimensions))
    near = random.random(count) < 0.35
    values[near] = values[random.integers(0, count, near.sum())] + random.normal(size=(near.sum(), dimensions)) * 0.3
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def one_after_the_other(values: np.ndarray, ranks: list[int]) -> dict[int, int]:
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    kept: list[int] = []
    gone = {}
    for number in np.argsort(ranks).tolist():
        alike = [other for other in kept if unit[number] @ unit[other] > ABOVE]
        if alike:
            gone[1000 + number] = 1000 + alike[0]
        else:
            kept.append(number)
    return gone


def found(base: duckdb.DuckDBPyConnection) -> dict[int, int]:
    return dict(base.execute("SELECT row, of_row FROM content_stars").fetchall())


@pytest.mark.parametrize(
    "by", [False, pytest.param(True, marks=pytest.mark.skipif(not installed(), reason="no faiss"))]
)
def test_it_is_what_one_after_the_other_would_drop(
    base: duckdb.DuckDBPyConnection, tmp_path: Path, by: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_BLOCK", 32)
    monkeypatch.setattr(content, "_CHUNK", 40)
    values = clustered(400)
    ranks = np.random.default_rng(1).permutation(400).tolist()
    written(base, tmp_path, values, ranks, 90)
    compared = stars(base, "given", tmp_path, ABOVE, with_faiss=by)
    assert compared.method.startswith("exact, faiss" if by else "exact, numpy")
    expected = one_after_the_other(values, ranks)
    assert 30 < len(expected) < 250
    assert found(base) == expected


@pytest.mark.skipif(not installed(), reason="no faiss: pip install faiss-cpu")
def test_beyond_a_million_the_lists_beside_a_sample_are_searched(
    base: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "FLAT_UP_TO", 1_000)
    monkeypatch.setattr(content, "_BLOCK", 256)
    values = clustered(3_000)
    written(base, tmp_path, values, list(range(3_000)), 1_000)
    compared = stars(base, "given", tmp_path, ABOVE)
    assert compared.method.startswith("approximate, faiss")
    expected = one_after_the_other(values, list(range(3_000)))
    alike = sum(found(base).get(row) == of for row, of in expected.items())
    assert alike > 0.8 * len(expected)


def test_samples_without_an_embedding_stay_and_are_counted(base: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    written(base, tmp_path, np.array([[0, 0], [1, 0], [0, 0], [1, 0]]), [1, 2, 3, 4], 3)
    assert stars(base, "given", tmp_path, ABOVE, with_faiss=False).absent == 2
    assert found(base) == {1003: 1001}


def test_no_samples_are_none(base: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    written(base, tmp_path, np.empty((0, 2)), [], 3)
    assert stars(base, "given", tmp_path, ABOVE, with_faiss=False).absent == 0
    assert found(base) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "unit-1.npy cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "unit-1.npy cannot be read"),
        (lambda file: np.save(file, np.ones((2, 2), np.float32)), r"unit-1.npy holds float32 \[2, 2\], not float16"),
        (lambda file: np.save(file, np.array([[1, 0]], np.float16)), "has 1 embeddings and is asked for number 1"),
        (lambda file: np.save(file, np.array([[1, 0], [2, 0]], np.float16)), "unit-1.npy: embedding 1 has norm 2, not"),
        (lambda file: np.save(file, np.array([[np.nan, 0]] * 2, np.float16)), "embedding 0 has norm nan"),
        (lambda file: np.save(file, np.ones((2, 1), np.float16)), "unit-1.npy has 1 dimensions"),
        (lambda file: np.save(file, np.array([{}]), allow_pickle=True), "unit-1.npy cannot be read"),
    ],
)
def test_what_does_not_fit_the_samples_is_refused(
    base: duckdb.DuckDBPyConnection, tmp_path: Path, change: object, message: str
) -> None:
    written(base, tmp_path, np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), [1, 2, 3, 4], 2)
    change(tmp_path / "unit-1.npy")  # type: ignore[operator]
    with pytest.raises(RunError, match=message):
        stars(base, "given", tmp_path, ABOVE, with_faiss=False)
