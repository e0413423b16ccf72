"""Which samples go because another one says the same, for which they go, and how many each of the rest stands for.

Three steps, each among what the one before left: equal stored bytes, perceptual hashes within a few bits, embeddings
of a high cosine. Who stays is decided in the order of ranks (see `graph.stars`), ranks by `Dedup.keep`, ties by row:
the outcome depends on the samples alone, not on the order of files or the number of threads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from bigdiff.config.dedup import Dedup
from bigdiff.config.errors import UsageError
from bigdiff.prep import content, near
from bigdiff.prep.content import Compared
from bigdiff.prep.query import named, quoted

SAME: Final = "same picture as another row's"
NEAR: Final = "nearly the same picture as another row's"
CONTENT: Final = "nearly the same content as another row's"
_MANY: Final = 0.2  # of the samples: more near-duplicates or flat pictures than photos of the web have
_RANKED: Final = ("row", "sha256", "phash", "original_width", "original_height")


@dataclass(frozen=True, kw_only=True, slots=True)
class Linked:
    """The near-duplicates among the samples whose stored bytes differ."""

    hashes: int  # different ones that were compared
    flat: int  # samples whose hash says too little (one colour, stripes, mirror images): compared by their bytes alone
    clusters: int  # of two rows or more, linked by chains too
    largest: int  # rows of the largest cluster
    chained: int  # rows that are linked with what stays, but not near it: they stay


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was dropped."""

    samples: int
    same: int
    near: int
    content: int
    linked: Linked | None  # None: not asked for
    compared: Compared | None  # None: not asked for

    @property
    def kept(self) -> int:
        """Samples that stay."""
        return self.samples - self.same - self.near - self.content

    def warnings(self) -> tuple[str, ...]:
        """What to look at before trusting it, a sentence each."""
        found = []
        different = self.samples - self.same
        if self.near > _MANY * different:
            found.append(
                f"{self.near:,} of {different:,} pictures are nearly the same as another's: a perceptual hash takes "
                "drawings, charts and products on plain ground for one another; look at some and lower "
                "dedup.near_distance if they differ"
            )
        if self.linked is not None and self.linked.flat > _MANY * different:
            found.append(
                f"{self.linked.flat:,} of {different:,} pictures are of one colour, of stripes or mirror images of "
                "themselves: those were compared by their bytes alone"
            )
        if self.compared is not None and self.compared.absent:
            found.append(f"{self.compared.absent:,} pictures have no embedding: their content was not compared")
        return tuple(found)


def find(base: duckdb.DuckDBPyConnection, samples: str, dedup: Dedup, embeddings: Path | None = None) -> Outcome:
    """Make the tables duplicates (row, cause, of_row) and cluster_sizes (row, cluster_size) from `samples`.

    `samples` has a row per sample: row, sha256; phash with `near_distance`; original_width and original_height, or the
    column `keep_by`, with `keep`; and with `embedding_above` unit and position: its embedding is at that index of
    `embeddings`/<unit>.npy. of_row always stays; the cause is that of the step that dropped the row, so a copy of a
    picture that goes for its content goes for what that one goes for. cluster_size counts a kept row and all that go
    for it.

    Raises:
        UsageError: when there is no column `keep_by`.
        RunError: for embeddings that do not fit the samples, or a distance with too many pairs.
    """
    _rank(base, samples, dedup)
    base.execute(
        "CREATE OR REPLACE TEMP TABLE same AS SELECT copy.row, first.row AS of_row FROM "
        "(SELECT row, rank, min(rank) OVER (PARTITION BY sha256) AS best FROM ranked) copy "
        "JOIN ranked first ON first.rank = best WHERE copy.rank <> best"
    )
    base.execute(
        "CREATE OR REPLACE TEMP VIEW different AS SELECT * FROM ranked WHERE row NOT IN (SELECT row FROM same)"
    )
    linked = _near(base, dedup.near_distance)
    base.execute(
        "CREATE OR REPLACE TEMP VIEW unlike AS SELECT * FROM different WHERE row NOT IN (SELECT row FROM near_stars)"
    )
    compared = None
    base.execute("CREATE OR REPLACE TEMP TABLE content_stars (row BIGINT, of_row BIGINT)")
    if dedup.embedding_above is not None:
        assert embeddings is not None
        compared = content.stars(base, "unlike", embeddings, dedup.embedding_above)
    _join(base)
    counts = {table: _count(base, table) for table in ("ranked", "same", "near_stars", "content_stars")}
    for view in ("unlike", "different"):
        base.execute(f"DROP VIEW {view}")
    for table in ("same", "near_stars", "content_stars", "ranked"):
        base.execute(f"DROP TABLE {table}")
    return Outcome(
        samples=counts["ranked"],
        same=counts["same"],
        near=counts["near_stars"],
        content=counts["content_stars"],
        linked=linked,
        compared=compared,
    )


def _rank(base: duckdb.DuckDBPyConnection, samples: str, dedup: Dedup) -> None:
    """The table ranked: rank 1 stays in any case."""
    present = [str(row[0]) for row in base.execute(f"DESCRIBE SELECT * FROM {samples}").fetchall()]
    order = {"first": "", "largest": "original_width * original_height DESC NULLS LAST, "}.get(dedup.keep)
    if order is None:
        if dedup.keep_by not in present:
            others = ", ".join(name for name in present if name not in _RANKED)
            raise UsageError(f"dedup.keep_by is {dedup.keep_by!r}, which the samples do not have: they have {others}")
        score = f"TRY_CAST({named(dedup.keep_by)} AS DOUBLE)"
        # Not-a-number counts as absent: duckdb orders it above every number.
        order = f"CASE WHEN isfinite({score}) THEN {score} END DESC NULLS LAST, "
    place = ", unit, position" if dedup.embedding_above is not None else ""
    hashed = "phash" if dedup.near_distance is not None else "NULL AS phash"
    base.execute(
        f"CREATE OR REPLACE TEMP TABLE ranked AS SELECT row, sha256, {hashed}{place}, "
        f"row_number() OVER (ORDER BY {order}row) AS rank FROM {samples}"
    )


def _near(base: duckdb.DuckDBPyConnection, distance: int | None) -> Linked | None:
    base.execute("CREATE OR REPLACE TEMP TABLE near_stars (row BIGINT, of_row BIGINT)")
    if distance is None:
        return None
    found = near.search(base, "different", distance)
    near.clusters(base, "different")
    near.stars(base, "different")
    ((clusters, largest, rows),) = base.execute(
        "SELECT count(*), coalesce(max(n), 1), coalesce(sum(n), 0) FROM "
        "(SELECT count(*) AS n FROM near_clusters GROUP BY cluster HAVING count(*) > 1)"
    ).fetchall()
    gone = _count(base, "near_stars")
    for table in ("near_hashes", "near_pairs", "near_clusters"):
        base.execute(f"DROP TABLE {table}")
    return Linked(
        hashes=found.hashes, flat=found.flat, clusters=clusters, largest=largest, chained=int(rows) - clusters - gone
    )


def _join(base: duckdb.DuckDBPyConnection) -> None:
    """The three steps' tables to one, of_row followed to what stays."""
    base.execute(
        f"""CREATE OR REPLACE TEMP TABLE duplicates AS
        WITH two AS (
            SELECT row, {quoted(CONTENT)} AS cause, of_row FROM content_stars UNION ALL
            SELECT near_stars.row, {quoted(NEAR)}, coalesce(content.of_row, near_stars.of_row)
            FROM near_stars LEFT JOIN content_stars content ON content.row = near_stars.of_row
        )
        SELECT * FROM two UNION ALL
        SELECT same.row, {quoted(SAME)}, coalesce(two.of_row, same.of_row)
        FROM same LEFT JOIN two ON two.row = same.of_row ORDER BY row"""
    )
    base.execute(
        """CREATE OR REPLACE TEMP TABLE cluster_sizes AS
        SELECT ranked.row, 1 + coalesce(n, 0) AS cluster_size FROM ranked
        LEFT JOIN (SELECT of_row, count(*) AS n FROM duplicates GROUP BY of_row) ON of_row = ranked.row
        WHERE ranked.row NOT IN (SELECT row FROM duplicates) ORDER BY ranked.row"""
    )


def _count(base: duckdb.DuckDBPyConnection, relation: str) -> int:
    ((rows,),) = base.execute(f"SELECT count(*) FROM {relation}").fetchall()
    return int(rows)
