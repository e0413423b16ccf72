"""Which of the stored samples become the set, and in which shard each lies.

In this order: what was taken down, the rules on our own scores, evaluation pictures and captions, duplicates. Each
sample that is left out has one cause, that of the first step which refuses it. Nothing is decoded or scored here, so
that a threshold can be moved without either.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from bigdiff.config.dedup import DEFAULT_EVALUATION_DISTANCE, Dedup
from bigdiff.config.errors import RunError
from bigdiff.config.scoring import Scoring
from bigdiff.data.damage import Tombstones
from bigdiff.prep import decontaminate, dedup, query
from bigdiff.prep.buckets import Fit
from bigdiff.prep.layout import Layout
from bigdiff.prep.query import quoted
from bigdiff.prep.rules import Rule
from bigdiff.prep.scorers import thresholds
from bigdiff.prep.select import Count
from bigdiff.runtime.files import replacing, write_json

DUPLICATE: Final = dedup.SAME
TAKEN_DOWN: Final = "taken down"
STEPS: Final = ("takedown", "score", "evaluation", "duplicate")  # in the order in which they decide
CLUSTER_SIZE: Final = "cluster_size"  # the column that says how many samples of the job a kept one stands for
_ROW_GROUP: Final = 10_000
_LEFT: Final = "samples ANTI JOIN dropped USING (row)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What decides."""

    samples_per_shard: int
    fit: Fit = field(default_factory=Fit)  # how pictures are stored; of several shapes each shard has one
    takedown: Tombstones = field(default_factory=lambda: Tombstones(entries=frozenset()))
    scoring: Scoring = field(default_factory=Scoring)
    dedup: Dedup = field(default_factory=Dedup)
    rules: tuple[Rule, ...] = ()  # on the samples' columns, beside those on their scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """The outcome: samples at the beginning, what each rule left, shards, and what a person should look at."""

    samples: int
    counts: tuple[Count, ...]
    shards: tuple[str, ...]  # the bucket of each; "" where all have one shape
    notes: tuple[str, ...] = ()


def plan(layout: Layout, choice: Choice, pictures: decontaminate.Pictures | None = None) -> Decided:
    """Decide, unless that is done. The samples keep their order and are spread so that shards differ by one at most.

    A short last shard would weigh on a reader that shuffles shard by shard. With buckets that holds within each.
    `pictures` are the evaluation's.

    Raises:
        RunError: when no sample is left.
        UsageError: as `decontaminate.contaminated` and `dedup.find`.
    """
    if not layout.plan.exists():
        with query.database(layout.work / "duckdb", None) as base:
            _gather(base, layout)
            samples = _one(base, "SELECT count(*) FROM samples")
            counts, notes = _decide(base, layout, choice, pictures)
            shards = _spread(base, choice)
            named = (
                "SELECT dropped.row, samples.unit, step, cause, of_row, of, url FROM dropped JOIN samples USING (row)"
            )
            _copy(base, f"{named} ORDER BY dropped.row", layout.dropped)
            decided = Decided(samples=samples, counts=counts, shards=shards, notes=notes)
            write_json(layout.decided, asdict(decided))
            placed = "first + (row_number() OVER (PARTITION BY bucket ORDER BY row) - 1) * shards // samples AS shard"
            chosen = f"(SELECT *, {_bucket(choice)} AS bucket FROM {_LEFT}) JOIN sizes USING (row)"
            asked = f"SELECT row, unit, {placed}, {CLUSTER_SIZE} FROM {chosen} JOIN spread USING (bucket) ORDER BY row"
            _copy(base, asked, layout.plan)
    decided = read(layout)
    if not decided.shards:
        last = next((count.rule for count in decided.counts if not count.left), "")
        why = (
            f"after '{last}': the same command with another setting goes on from here"
            if decided.samples
            else (f"{layout.rejected} and the log of each part say why")
        )
        raise RunError(f"no sample is left of {decided.samples:,}: {why}")
    return decided


def read(layout: Layout) -> Decided:
    """What was decided."""
    content: dict[str, Any] = json.loads(layout.decided.read_text())
    counts = tuple(Count(**count) for count in content.pop("counts"))
    return Decided(counts=counts, notes=tuple(content.pop("notes")), shards=tuple(content.pop("shards")), **content)


def _bucket(choice: Choice) -> str:
    return "width || 'x' || height" if len(choice.fit.shapes) > 1 else "''"


def _spread(base: duckdb.DuckDBPyConnection, choice: Choice) -> tuple[str, ...]:
    """The table `spread`: each bucket's samples, number of shards and first shard. Gives the bucket of each shard."""
    asked = f"SELECT {_bucket(choice)} AS bucket, count(*) FROM {_LEFT} GROUP BY bucket ORDER BY bucket"
    found = query.run(base, asked, "planning")
    rows, shards = [], list[str]()
    for bucket, samples in found:
        count = math.ceil(samples / choice.samples_per_shard)
        rows.append({"bucket": bucket, "samples": samples, "shards": count, "first": len(shards)})
        shards += [bucket] * count
    schema = pa.schema({"bucket": pa.string(), "samples": pa.int64(), "shards": pa.int64(), "first": pa.int64()})
    base.register("spread", pa.Table.from_pylist(rows, schema))
    return tuple(shards)


def _gather(base: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """The table `samples`: one row a sample with its unit, identity and scores; and an empty `dropped`."""
    files = quoted(layout.samples / "*.parquet")
    stored = f"read_parquet({files}, filename = true, file_row_number = true, union_by_name = true) AS stored"
    scored = f"read_parquet({quoted(layout.scores / '*.parquet')}, union_by_name = true) AS scored"
    with_scores = f" JOIN {scored} USING (row)" if any(layout.scores.glob("*.parquet")) else ""
    kept = 'stored.* EXCLUDE (filename, file_row_number, "offset", length)'
    more = ", scored.* EXCLUDE (row)" if with_scores else ""
    place = "parse_filename(stored.filename, true) AS unit, stored.file_row_number AS position"
    _run(base, f"CREATE TABLE samples AS SELECT {kept}{more}, {place} FROM {stored}{with_scores}")
    _run(base, "CREATE TABLE dropped (row BIGINT, step VARCHAR, cause VARCHAR, of_row BIGINT, of VARCHAR)")


def _decide(
    base: duckdb.DuckDBPyConnection, layout: Layout, choice: Choice, pictures: decontaminate.Pictures | None
) -> tuple[tuple[Count, ...], tuple[str, ...]]:
    counts = [*_taken_down(base, choice.takedown), *_by_rules(base, (*thresholds.rules(choice.scoring), *choice.rules))]
    captions = choice.dedup.evaluation_captions
    if pictures is not None or captions is not None:
        distance = choice.dedup.evaluation_distance
        nearest = DEFAULT_EVALUATION_DISTANCE if distance is None else distance
        _run(base, f"CREATE TEMP VIEW asked AS SELECT * FROM {_LEFT}")
        decontaminate.contaminated(base, "asked", pictures, nearest, None if captions is None else Path(captions))
        for cause in (decontaminate.PICTURE, decontaminate.CAPTION):
            found = f"SELECT row, NULL, of FROM contaminated WHERE cause = {quoted(cause)}"
            counts.append(_drop(base, "evaluation", cause, found))
    _run(base, f"CREATE TEMP VIEW candidates AS SELECT * FROM {_LEFT}")
    outcome = dedup.find(base, "candidates", choice.dedup, layout.embeddings)
    _sizes(base)  # of all candidates: before the duplicates among them are left out
    asked = {dedup.SAME: True, dedup.NEAR: outcome.linked is not None, dedup.CONTENT: outcome.compared is not None}
    for cause in (cause for cause, wanted in asked.items() if wanted):
        found = f"SELECT row, of_row, NULL FROM duplicates WHERE cause = {quoted(cause)}"
        counts.append(_drop(base, "duplicate", cause, found))
    return tuple(counts), outcome.warnings()


def _taken_down(base: duckdb.DuckDBPyConnection, takedown: Tombstones) -> list[Count]:
    if not takedown.entries:
        return []
    base.register("taken", pa.table({"entry": pa.array(sorted(takedown.entries), pa.string())}))
    named = " OR ".join(f"{column} IN (SELECT entry FROM taken)" for column in ("key", "url", "sha256"))
    count = _drop(base, "takedown", TAKEN_DOWN, f"SELECT row, NULL, NULL FROM samples WHERE {named}")
    base.unregister("taken")
    return [count]


def _by_rules(base: duckdb.DuckDBPyConnection, active: tuple[Rule, ...]) -> list[Count]:
    """The rules, counted together: what each leaves after those before it, and what it alone refuses."""
    if not active:
        return []
    flags = ", ".join(f"{rule.sql} AS p{index}" for index, rule in enumerate(active))
    failed = " + ".join(f"CAST(NOT p{index} AS INTEGER)" for index in range(len(active)))
    _run(base, f"CREATE TEMP TABLE judged AS SELECT *, {failed} AS failed FROM (SELECT row, {flags} FROM {_LEFT})")
    counts = []
    for index, rule in enumerate(active):
        alone = _one(base, f"SELECT count(*) FROM judged WHERE NOT p{index} AND failed = 1")
        refused = f"SELECT row, NULL, NULL FROM judged ANTI JOIN dropped USING (row) WHERE NOT p{index}"
        counts.append(_drop(base, "score", rule.name, refused, alone))
    _run(base, "DROP TABLE judged")
    return counts


def _sizes(base: duckdb.DuckDBPyConnection) -> None:
    """The table `sizes`: a kept row stands for itself, for those that went for it, and for what these stood for."""
    columns = [str(row[0]) for row in base.execute("DESCRIBE candidates").fetchall()]
    own = f"coalesce({CLUSTER_SIZE}, 1)" if CLUSTER_SIZE in columns else "1"
    _run(
        base,
        f"""CREATE TABLE sizes AS SELECT coalesce(of_row, row) AS row, CAST(sum(own) AS BIGINT) AS {CLUSTER_SIZE}
        FROM (SELECT row, {own} AS own FROM candidates) LEFT JOIN duplicates USING (row) GROUP BY 1""",
    )
    if CLUSTER_SIZE in columns:
        _run(base, f"ALTER TABLE samples DROP COLUMN {CLUSTER_SIZE}")


def _drop(base: duckdb.DuckDBPyConnection, step: str, cause: str, refused: str, alone: int | None = None) -> Count:
    """Leave out the (row, of_row, of) of `refused`, which have no cause yet."""
    named = f"{quoted(step)}, {quoted(cause)}"
    _run(base, f"INSERT INTO dropped SELECT row, {named}, of_row, of FROM ({refused}) AS each(row, of_row, of)")
    gone = _one(base, f"SELECT count(*) FROM dropped WHERE (step, cause) = ({named})")
    left = _one(base, "SELECT (SELECT count(*) FROM samples) - (SELECT count(*) FROM dropped)")
    return Count(rule=cause, left=left, only=gone if alone is None else alone)


def _copy(base: duckdb.DuckDBPyConnection, rows: str, final: Path) -> None:
    with replacing(final) as temporary:
        _run(base, f"COPY ({rows}) TO {quoted(temporary)} (FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP})")


def _run(base: duckdb.DuckDBPyConnection, statement: str) -> None:
    query.run(base, statement, "planning")


def _one(base: duckdb.DuckDBPyConnection, asked: str) -> int:
    ((number,),) = query.run(base, asked, "planning")
    return int(number)
