"""Samples whose CLIP embeddings have a cosine above a threshold: the better one by rank stays, the other goes.

Samples are taken in the order of their ranks, a block at a time, and compared with what stays so far, so no list of
pairs is ever held. With numpy all are compared, exactly, in bounded memory: n^2 / 2 products. faiss, where it is
installed, does the same up to a million samples; beyond, it looks into the lists next to a sample only (IVF), which
misses some, and holds what stays in memory.
What either finds is decided here in double precision, so both give the same outcome where both are exact.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from bigdiff.config.errors import RunError
from bigdiff.prep import graph

FLAT_UP_TO: Final = 1_000_000  # samples
_BLOCK: Final = 2_048  # samples taken at once
_CHUNK: Final = 8_192  # kept ones compared at once: 64 MB of products
_NORMS: Final = (0.99, 1.01)  # half precision moves a norm by 0.0005
_MARGIN: Final = 0.02  # of the cosine: what such norms can make of a product
_PROBED: Final = 32  # lists of an IVF
_TRAINED_ON: Final = 64  # samples a list

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """How content was compared."""

    method: str  # for the lineage
    absent: int  # samples whose embedding is all zeros: not compared


class Index(Protocol):
    """Finds among the embeddings added so far those alike to others."""

    def add(self, places: Ints, embeddings: Floats) -> None:
        """Add the embeddings [n, dimensions] of the samples at `places`, which rise."""

    def near(self, embeddings: Floats, above: float) -> tuple[Ints, Ints]:
        """(index into `embeddings`, place) of the pairs whose product may be above `above`."""


class Embeddings:
    """The embeddings of samples, in files: `folder`/<unit>.npy, fp16 [samples of the unit, dimensions], norm 1."""

    def __init__(self, folder: Path, units: list[str]) -> None:
        self._files = [folder / f"{unit}.npy" for unit in units]
        self._maps = [_opened(file) for file in self._files]
        self.dimensions = self._maps[0].shape[1] if self._maps else 0
        for file, values in zip(self._files, self._maps, strict=True):
            if values.shape[1] != self.dimensions:
                raise RunError(f"{file} has {values.shape[1]} dimensions, {self._files[0]} has {self.dimensions}")

    def at(self, units: Ints, positions: Ints) -> Floats:
        """The embeddings of the samples at `positions` of `units` (numbers into the list of names)."""
        found = np.empty((len(units), self.dimensions), np.float32)
        for unit in np.unique(units):
            mine = units == unit
            if positions[mine].max() >= len(self._maps[unit]):
                raise RunError(
                    f"{self._files[unit]} has {len(self._maps[unit])} embeddings and is asked for number "
                    f"{positions[mine].max()}: delete it, and the same command makes it again"
                )
            found[mine] = self._maps[unit][positions[mine]]
        norms = np.linalg.norm(found, axis=1)
        wrong = np.flatnonzero(~((norms >= _NORMS[0]) & (norms <= _NORMS[1]) | (norms == 0)))
        if len(wrong):
            raise RunError(
                f"{self._files[units[wrong[0]]]}: embedding {positions[wrong[0]]} has norm {norms[wrong[0]]:.3g}, not 1"
            )
        return found


def stars(
    base: duckdb.DuckDBPyConnection, samples: str, folder: Path, above: float, with_faiss: bool | None = None
) -> Compared:
    """Make the table content_stars (row, of_row) from `samples` (row, rank, unit, position).

    `with_faiss`: None = where it is installed.

    Raises:
        RunError: for embeddings that do not fit the samples.
    """
    names = [str(name) for (name,) in base.execute(f"SELECT DISTINCT unit FROM {samples} ORDER BY unit").fetchall()]
    base.register("content_units", pa.table({"unit": pa.array(names, pa.string()), "number": range(len(names))}))
    ranked = base.execute(
        f"SELECT row, number AS unit, position FROM {samples} JOIN content_units USING (unit) ORDER BY rank"
    ).fetchnumpy()
    base.unregister("content_units")
    embeddings = Embeddings(folder, names)
    index, method = _index(embeddings, ranked, installed() if with_faiss is None else with_faiss)
    goes_for, absent = _stars(embeddings, ranked, index, above)
    gone = np.flatnonzero(goes_for >= 0)
    base.register("content_gone", pa.table({"row": ranked["row"][gone], "of_row": ranked["row"][goes_for[gone]]}))
    base.execute("CREATE OR REPLACE TEMP TABLE content_stars AS SELECT * FROM content_gone")
    base.unregister("content_gone")
    return Compared(method=method, absent=absent)


def installed() -> bool:
    """Whether faiss can be imported."""
    return importlib.util.find_spec("faiss") is not None


def _stars(embeddings: Embeddings, ranked: dict[str, Ints], index: Index, above: float) -> tuple[Ints, int]:
    """For each sample in rank order the place of the one it goes for, or -1; and how many have no embedding."""
    count = len(ranked["row"])
    goes_for, absent = np.full(count, -1), 0
    with tqdm(total=count, desc="comparing content", unit="picture", file=sys.stderr, disable=not count) as bar:
        for first in range(0, count, _BLOCK):
            places = np.arange(first, min(first + _BLOCK, count))
            block = embeddings.at(ranked["unit"][places], ranked["position"][places])
            there = block.any(axis=1)
            absent += int((~there).sum())
            places, block = places[there], block[there]
            asked, better = index.near(block, above - _MARGIN)
            kept = embeddings.at(ranked["unit"][better], ranked["position"][better])
            alike = _cosine(kept, block[asked]) > above
            order = np.lexsort((better[alike], asked[alike]))
            who, first_of = np.unique(asked[alike][order], return_index=True)
            goes_for[places[who]] = better[alike][order][first_of]
            stay = goes_for[places] < 0
            places, block = places[stay], block[stay]
            dropped, favoured = graph.stars(*_within(block, above))
            goes_for[places[dropped]] = places[favoured]
            stay = goes_for[places] < 0
            index.add(places[stay], block[stay])
            bar.update(min(_BLOCK, count - first))
    return goes_for, absent


def _within(block: Floats, above: float) -> tuple[Ints, Ints]:
    """The pairs (better, worse) of a block."""
    better, worse = np.nonzero(np.triu(block @ block.T > above - _MARGIN, 1))
    alike = np.zeros(len(better), bool)
    for first in range(0, len(better), _CHUNK):
        part = slice(first, first + _CHUNK)
        alike[part] = _cosine(block[better[part]], block[worse[part]]) > above
    return better[alike], worse[alike]


def _cosine(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Row by row; products of halves are exact in double precision, and their sum's round-off is rounded away."""
    left, right = one.astype(np.float64), other.astype(np.float64)
    norms = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
    cosines: npt.NDArray[np.float64] = np.round((left * right).sum(axis=1) / norms, 9)
    return cosines


class _Blocks:
    """All kept embeddings, compared a chunk at a time from their files."""

    def __init__(self, embeddings: Embeddings, ranked: dict[str, Ints]) -> None:
        self._embeddings, self._ranked = embeddings, ranked
        self._kept: list[Ints] = []

    def add(self, places: Ints, embeddings: Floats) -> None:
        self._kept.append(places)

    def near(self, embeddings: Floats, above: float) -> tuple[Ints, Ints]:
        kept = np.concatenate([np.empty(0, np.int64), *self._kept])
        self._kept = [kept]
        asked, better = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first in range(0, len(kept), _CHUNK):
            places = kept[first : first + _CHUNK]
            theirs = self._embeddings.at(self._ranked["unit"][places], self._ranked["position"][places])
            mine, found = np.nonzero(embeddings @ theirs.T > above)
            asked.append(mine)
            better.append(places[found])
        return np.concatenate(asked), np.concatenate(better)


class _Faiss:
    """A faiss index of the kept embeddings."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401 (faiss is optional)
        self._index = index

    def add(self, places: Ints, embeddings: Floats) -> None:
        if len(places):
            self._index.add_with_ids(embeddings, places)

    def near(self, embeddings: Floats, above: float) -> tuple[Ints, Ints]:
        if not self._index.ntotal or not len(embeddings):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        limits, _, found = self._index.range_search(embeddings, above)
        return np.repeat(np.arange(len(embeddings)), np.diff(limits.astype(np.int64))), found


def _index(embeddings: Embeddings, ranked: dict[str, Ints], with_faiss: bool) -> tuple[Index, str]:
    if not with_faiss:
        return _Blocks(embeddings, ranked), "exact, numpy"
    faiss: Any = importlib.import_module("faiss")
    version = f"faiss {faiss.__version__}"
    count = len(ranked["row"])
    flat = faiss.IndexFlatIP(embeddings.dimensions)
    if count <= FLAT_UP_TO:
        return _Faiss(faiss.IndexIDMap(flat)), f"exact, {version}"
    lists = int(4 * np.sqrt(count))
    index = faiss.IndexIVFFlat(flat, embeddings.dimensions, lists, faiss.METRIC_INNER_PRODUCT)
    every = np.linspace(0, count - 1, min(count, lists * _TRAINED_ON)).astype(np.int64)
    index.train(embeddings.at(ranked["unit"][every], ranked["position"][every]))
    index.nprobe = min(_PROBED, lists)
    return _Faiss(index), f"approximate, {version}, {index.nprobe} of {lists} lists"


def _opened(file: Path) -> npt.NDArray[np.float16]:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{file} cannot be read ({error}): delete it, and the same command makes it again") from error
    if values.dtype != np.float16 or values.ndim != 2:
        raise RunError(f"{file} holds {values.dtype} {list(values.shape)}, not float16 [samples, dimensions]")
    found: npt.NDArray[np.float16] = values
    return found
