"""Pictures whose perceptual hashes are within a few bits of each other: every such pair, without comparing all pairs.

Two hashes that differ in d bits at most agree in at least k of any d + k bands of them (the pigeonhole of Manku, Jain &
Das Sarma 2007, section 3). So for each choice of k bands, hashes that agree there are compared; no pair is missed.
A larger k means more passes and fewer comparisons a pass; the cheapest for the number of hashes is taken.

duckdb does it and spills to its temporary folder; equal hashes are compared once. Only the pairs found are held in
memory, with some 70 bytes each. Where very many hashes agree in a choice of bands, they are searched again with a
larger k.
Flat hashes (`phash.is_flat`) say nothing about likeness: they are left out and counted.
"""

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import duckdb
import pyarrow as pa

from bigdiff.config.errors import RunError
from bigdiff.prep import graph
from bigdiff.prep.phash import BITS, flat_sql

MOST_PAIRS: Final = 100_000_000  # 7 GB
MOST_COMPARISONS: Final = 20_000_000_000  # of one pass: a quarter of an hour on one core
_CROWD: Final = 4_000_000  # comparisons within one value of a choice of bands: 0.2 s
_MOST_AGREEING: Final = 4  # bands
_ROW_COST: Final = 4  # a row's part in a pass, in comparisons (measured)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What `search` saw."""

    hashes: int  # different ones that were compared
    flat: int  # samples that were not: their hash is flat
    pairs: int  # of hashes


def search(base: duckdb.DuckDBPyConnection, samples: str, distance: int) -> Found:
    """Find the pairs of hashes in `samples` (row, rank, phash) that differ in 1 to `distance` bits.

    Makes the tables near_hashes (hash, rank: the best of its samples) and near_pairs (one, other).

    Raises:
        RunError: when there are too many pairs or comparisons for this distance.
    """
    base.execute(
        "CREATE OR REPLACE TEMP TABLE near_hashes AS SELECT phash AS hash, min(rank) AS rank "
        f"FROM {samples} WHERE NOT {flat_sql('phash')} GROUP BY phash"
    )
    pairs(base, "near_hashes", "near_hashes", distance, "near_pairs")
    return Found(
        hashes=_count(base, "near_hashes"),
        flat=_count(base, f"{samples} WHERE {flat_sql('phash')}"),
        pairs=_count(base, "near_pairs"),
    )


def clusters(base: duckdb.DuckDBPyConnection, samples: str) -> None:
    """After `search`: the table near_clusters (row, cluster), the smallest row of those linked with it, by chains too.

    Every row of `samples` is in it; those with a flat hash are alone.
    """
    found = base.execute("SELECT one, other FROM near_pairs").fetchnumpy()
    nodes, labels = graph.components(found["one"], found["other"])
    linked = pa.table({"hash": nodes, "label": labels})
    base.register("near_linked", linked)
    base.execute(
        f"""CREATE OR REPLACE TEMP TABLE near_clusters AS
        SELECT row, CASE WHEN {flat_sql("phash")} THEN row
        ELSE min(row) OVER (PARTITION BY coalesce(label, phash), {flat_sql("phash")}) END AS cluster
        FROM {samples} LEFT JOIN near_linked ON hash = phash"""
    )
    base.unregister("near_linked")


def stars(base: duckdb.DuckDBPyConnection, samples: str) -> None:
    """After `search`: the table near_stars (row, of_row), the samples to drop, each for a kept one within the distance.

    In the order of their ranks, a sample is dropped when a better one that stays is within the distance: what is only
    linked by a chain of others stays, and no two that stay are within the distance of each other.
    """
    ranked = base.execute(
        """SELECT least(a.rank, b.rank) AS better, greatest(a.rank, b.rank) AS worse FROM near_pairs
        JOIN near_hashes a ON a.hash = one JOIN near_hashes b ON b.hash = other"""
    ).fetchnumpy()
    dropped, kept = graph.stars(ranked["better"], ranked["worse"])
    base.register("near_dropped", pa.table({"rank": dropped, "best": kept}))
    base.execute(
        f"""CREATE OR REPLACE TEMP TABLE near_stars AS
        SELECT sample.row, kept.row AS of_row
        FROM {samples} sample JOIN near_hashes ON hash = sample.phash
        LEFT JOIN near_dropped ON near_dropped.rank = near_hashes.rank
        JOIN {samples} kept ON kept.rank = coalesce(best, near_hashes.rank)
        WHERE sample.row <> kept.row"""
    )
    base.unregister("near_dropped")


def pairs(base: duckdb.DuckDBPyConnection, left: str, right: str, distance: int, into: str) -> None:
    """Make the table `into` (one, other): all pairs of a `left` and a `right` hash that differ in `distance` at most.

    `left` and `right` have a column hash of different values. Where they are the same table, each pair is there once,
    one < other, and none of a hash with itself.

    Raises:
        RunError: as `search`.
    """
    base.execute("CREATE OR REPLACE TEMP TABLE near_found (one BIGINT, other BIGINT)")
    agreeing = _cheapest(_count(base, left), _count(base, right), distance)
    sides, level = (left, right), 0
    while True:
        last = agreeing == _MOST_AGREEING or distance == 0
        crowds = ("near_left", "near_left" if left == right else "near_right")
        for name in sorted({*crowds}):
            base.execute(f"CREATE OR REPLACE TEMP TABLE {name}_crowd (hash BIGINT)")
        for chosen in combinations(bands(distance + agreeing), agreeing):
            _pass(base, sides, crowds, _Choice(chosen=chosen, distance=distance, last=last))
            if _count(base, "near_found") > MOST_PAIRS:
                raise RunError(
                    f"more than {MOST_PAIRS:,} pairs of pictures are within {distance} bits: lower the distance"
                )
        if not _count(base, f"{crowds[0]}_crowd"):
            break
        level, agreeing = level + 1, agreeing + 1
        for name in sorted({*crowds}):
            base.execute(f"CREATE OR REPLACE TEMP TABLE {name}_{level} AS SELECT DISTINCT hash FROM {name}_crowd")
        sides = (f"{crowds[0]}_{level}", f"{crowds[1]}_{level}")
    base.execute(f"CREATE OR REPLACE TEMP TABLE {into} AS SELECT DISTINCT one, other FROM near_found")
    for name in (
        "near_found",
        "near_keys",
        *(f"near_{side}_{end}" for side in ("left", "right") for end in _ends(level)),
    ):
        base.execute(f"DROP TABLE IF EXISTS {name}")


def bands(count: int) -> list[int]:
    """`count` masks that share the 64 bits out, evenly to one bit."""
    edges = [BITS * number // count for number in range(count + 1)]
    return [(1 << high) - (1 << low) for low, high in pairwise(edges)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """The bands that must agree in a pass."""

    chosen: tuple[int, ...]
    distance: int
    last: bool  # there is no larger k to put crowds off to

    @property
    def key(self) -> str:
        return f"hash & {_literal(sum(self.chosen))}"

    @property
    def first(self) -> str:
        """Only where no earlier choice finds the pair: all bands before the last chosen that are not chosen differ."""
        every = bands(self.distance + len(self.chosen))
        skipped = [mask for mask in every if mask < max(self.chosen) and mask not in self.chosen]
        return " AND ".join(["true", *(f"xor(a.hash, b.hash) & {_literal(mask)} <> 0" for mask in skipped)])


def _pass(base: duckdb.DuckDBPyConnection, sides: tuple[str, str], crowds: tuple[str, str], choice: _Choice) -> None:
    """Compare what agrees in the chosen bands, but for crowds, whose members are put aside."""
    grouped = [f"(SELECT {choice.key} AS key, count(*) AS n FROM {table} GROUP BY ALL)" for table in sides]
    work = f"SELECT key, n * n // 2 AS work FROM {grouped[0]}"
    if sides[0] != sides[1]:
        work = f"SELECT key, a.n * b.n AS work FROM {grouped[0]} a JOIN {grouped[1]} b USING (key)"
    crowd = "false" if choice.last else f"work > {_CROWD}"
    ((total, crowded),) = base.execute(
        f"SELECT coalesce(sum(work) FILTER (NOT ({crowd})), 0), count(*) FILTER ({crowd}) FROM ({work})"
    ).fetchall()
    if total > MOST_COMPARISONS:
        raise RunError(
            f"finding pictures within {choice.distance} bits takes {total:,} comparisons of hashes that agree in "
            f"{len(choice.chosen)} bands, and {MOST_COMPARISONS:,} are allowed: lower the distance"
        )
    there = "true"
    if crowded:
        base.execute(f"CREATE OR REPLACE TEMP TABLE near_keys AS SELECT key FROM ({work}) WHERE {crowd}")
        there = f"{choice.key} NOT IN (SELECT key FROM near_keys)"
        for table, name in sorted({*zip(sides, crowds, strict=True)}):
            base.execute(f"INSERT INTO {name}_crowd SELECT hash FROM {table} WHERE NOT ({there})")
    a, b = (f"(SELECT hash, {choice.key} AS key FROM {table} WHERE {there})" for table in sides)
    base.execute(
        f"INSERT INTO near_found SELECT a.hash, b.hash FROM {a} a JOIN {b} b "
        f"ON a.key = b.key {'AND a.hash < b.hash' if sides[0] == sides[1] else ''} "
        f"WHERE bit_count(xor(a.hash, b.hash)) <= {choice.distance} AND {choice.first}"
    )


def _cheapest(left: int, right: int, distance: int) -> int:
    """How many bands must agree so that passes and comparisons together cost least, were the hashes evenly spread."""
    if distance == 0:
        return 1

    def cost(agreeing: int) -> float:
        bits = agreeing * (BITS // (distance + agreeing))
        return math.comb(distance + agreeing, agreeing) * (_ROW_COST * (left + right) + left * right / (1 << bits))

    return min(range(1, _MOST_AGREEING + 1), key=cost)


def _ends(level: int) -> list[str]:
    return ["crowd", *map(str, range(1, level + 1))]


def _literal(mask: int) -> str:
    signed = mask - 2**BITS if mask >> (BITS - 1) else mask
    return f"CAST('{signed}' AS BIGINT)"


def _count(base: duckdb.DuckDBPyConnection, relation: str) -> int:
    ((rows,),) = base.execute(f"SELECT count(*) FROM {relation}").fetchall()  # all: fetchone would hold the connection
    return int(rows)
