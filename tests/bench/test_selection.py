"""Rows per second of a selection beside plain duckdb with the same predicate, and the memory that each takes.

The rows are made up, but have LAION's columns and about its lengths; a twentieth of the URLs comes twice, 8 % pass the
preset. Plain duckdb makes either the preset's four comparisons only, or the same tests of URL and caption as ours, too.
Ours has also to count what every rule does, alone and in order, to draw four histograms and the curves of two
thresholds, and to number the rows. Each measurement is a process of its own. BIGDIFF_BENCH_ROWS sets another number of
rows: 1e8 take some ten minutes, 10 GB of disk and one round.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from bigdiff.config.prep import load_prep
from bigdiff.prep.rules import rules
from bigdiff.prep.select import inputs, select

RESULTS = Path(__file__).parent / "results"
ROWS = int(float(os.environ.get("BIGDIFF_BENCH_ROWS", "1e7")))
LARGE = ROWS > 10_000_000
ROUNDS = 1 if LARGE else 3
PER_FILE = 5_000_000
BOUND_GB = 4.0 if LARGE else 1.0
PREDICATE = "WIDTH >= 512 AND HEIGHT >= 512 AND AESTHETIC_SCORE > 5.0 AND pwatermark < 0.5"
WORDS = ["red", "green", "small", "old", "wooden", "silver", "vintage", "garden", "house", "lamp", "portrait", "river"]
WHERE, ORDERED = "plain: WHERE", "plain: WHERE, one per URL, ORDER BY"
SAME, OURS = "plain: the same tests, one per URL, ORDER BY", "bigdiff"
BOUNDED = f"bigdiff, memory_gb={BOUND_GB:g}"
ALL = f"bigdiff, every row, memory_gb={BOUND_GB:g}"  # the laion2b-en preset: it has no bound, so all of it is sorted


def make(folder: Path, rows: int) -> None:
    words = "[" + ", ".join(f"'{word}'" for word in WORDS) + "]"
    caption = ", ".join(f"{words}[1 + (h >> {shift}) % {len(WORDS)}]" for shift in range(0, 45, 5))
    uniform = ", ".join(f"(hash(k, {each}) % 1000003) / 1000003 AS u{each}" for each in range(1, 5))
    for number, first in enumerate(range(0, rows, PER_FILE)):
        last = min(first + PER_FILE, rows)
        keys = f"SELECT i, CASE WHEN i % 20 = 0 THEN i // 2 ELSE i END AS k FROM range({first}, {last}) t(i)"
        drawn = f"SELECT i, k, (hash(k) >> 1)::BIGINT AS h, {uniform} FROM ({keys})"
        sized = f"SELECT *, (150 + 1100 * u3 * u3)::INTEGER AS x, (150 + 1100 * u4 * u4)::INTEGER AS y FROM ({drawn})"
        duckdb.execute(
            "COPY (SELECT 'https://images' || (h % 5000) || '.example.com/photos/' || md5(k::VARCHAR) || '-' || x || "
            f"'x' || y || '.jpg' AS URL, concat_ws(' ', {caption}, i % 1000) AS TEXT, x AS WIDTH, y AS HEIGHT, "
            "0.28 + 0.12 * u1 * u1 AS similarity, h AS hash, (u1 * u2)::FLOAT AS punsafe, u2::FLOAT AS pwatermark, "
            f"(3.2 + 1.08 * (u1 + u3 + u4))::FLOAT AS AESTHETIC_SCORE, 'en' AS LANGUAGE FROM ({sized})) "
            f"TO '{folder}/{number:05d}.parquet' (FORMAT parquet, COMPRESSION zstd)"
        )


def measured(case: str, source: Path, output: Path) -> dict[str, float]:
    """Run one case in this process; seconds, rows that were kept, and the most memory it had."""
    began = time.perf_counter()
    if case in (WHERE, ORDERED, SAME):
        asked = f"SELECT * FROM '{source}/*.parquet' WHERE {PREDICATE}"
        if case == SAME:
            text = [rule.sql for rule in rules(load_prep("laion-improved-aesthetics").select, False) if rule.reads_text]
            asked += "".join(f" AND {sql.replace('caption', 'TEXT')}" for sql in text)
        if case != WHERE:
            unique = f"{asked} QUALIFY row_number() OVER (PARTITION BY URL ORDER BY TEXT) = 1"
            asked = f"SELECT * FROM ({unique}) ORDER BY md5('0:' || URL)"
        duckdb.execute(f"COPY ({asked}) TO '{output}' (FORMAT parquet, ROW_GROUP_SIZE 10000)")
    else:
        prep = load_prep("laion2b-en" if case == ALL else "laion-improved-aesthetics")
        if case != OURS:
            prep = replace(prep, select=replace(prep.select, memory_gb=BOUND_GB))
        select(inputs(source), prep, output)
    taken = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": taken, "kept": pq.read_metadata(output).num_rows, "memory": used}


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_rows_per_second(tmp_path: Path) -> None:
    make(tmp_path, ROWS)
    output = tmp_path / "selected" / "selected.parquet"
    output.parent.mkdir()
    cases = (WHERE, ORDERED, SAME, BOUNDED) if LARGE else (WHERE, ORDERED, SAME, OURS, BOUNDED, ALL)
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(ROUNDS):
        for case in cases if number == 0 else cases[:5]:  # once suffices for the memory of the last
            command = [sys.executable, __file__, case, str(tmp_path), str(output)]
            made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            found[case].append(json.loads(made.stdout))
    seconds = {case: statistics.median(each["seconds"] for each in rounds) for case, rounds in found.items()}
    size = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"Selection of {ROWS:,} rows ({size / 1e9:.1f} GB of parquet) by laion-improved-aesthetics, {today}",
        f"Python {platform.python_version()}, duckdb {duckdb.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, shared; medians of {ROUNDS} rounds",
        "of ...: rows a second as a share of those of the first three lines",
        f"{'':44} {'seconds':>8} {'M rows/s':>9} {'of WHERE':>9} {'of ordered':>11} {'of the same':>12} "
        f"{'memory GB':>10} {'kept':>12}",
    ]
    for case, rounds in found.items():
        lines.append(
            f"{case:44} {seconds[case]:8.1f} {ROWS / seconds[case] / 1e6:9.2f} {seconds[WHERE] / seconds[case]:9.2f} "
            f"{seconds[ORDERED] / seconds[case]:11.2f} {seconds[SAME] / seconds[case]:12.2f} "
            f"{max(each['memory'] for each in rounds) / 1e9:10.2f} {rounds[0]['kept']:12,.0f}"
        )
    name = "selection" if ROWS == 10_000_000 else f"selection-{ROWS:.0e}".replace("e+0", "e")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-{name}.txt").write_text("\n".join(lines) + "\n")
    assert found[ORDERED][0]["kept"] == found[BOUNDED][0]["kept"], lines
    assert max(each["memory"] for each in found[BOUNDED]) < (BOUND_GB + 1) * 1e9, lines


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
