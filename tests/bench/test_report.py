"""Seconds, memory and bytes of a report on a million stored samples.

The parquet files are made up, in the layout of a job that has downloaded, scored and planned; a few real pictures stand
for all, so that the disk stays small. The plan is the real one; of the shards only the first is written, which is all
that a report opens. The report is made in a process of its own.
"""

import io
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from bigdiff.config.dedup import Dedup
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep import report
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import Task, write_shard
from bigdiff.prep.plan import Choice, plan, read
from bigdiff.prep.select import Count, Histogram, Selection
from bigdiff.prep.sweep import Sweep

RESULTS = Path(__file__).parent / "results"
SAMPLES, UNITS, PICTURES, SIDE = 1_000_000, 200, 16, 256
FAILED = SAMPLES // 4  # rows that were not downloaded, beside the samples
SCORING = Scoring(
    scorers=[
        Scorer(kind="sharpness", at_least=40.0),
        Scorer(kind="flatness", below=0.9),
        Scorer(kind="caption_length", at_least=12.0, below=400.0),
        Scorer(kind="language", languages=("en", "de")),
    ]
)
CHOICE = Choice(samples_per_shard=2_000, scoring=SCORING, dedup=Dedup(near_distance=2))
CONTRACT = {"resolution": SIDE, "format": "jpg"}
BOUND_SECONDS, BOUND_BYTES = 60, 5_000_000


NAMES = ("aesthetic", "pwatermark")
URL = "'https://images' || (hash(row) % 50000) || '.example.com/photos/' || md5(row::VARCHAR) || '.jpg'"
CAPTION = "'a picture of thing number ' || row || repeat(' and more', (hash(row, 9) % 30)::INTEGER)"
CAUSES = "['HTTP 404', 'HTTP 403', 'timed out', 'HTTP 503', 'opted out: X-Robots-Tag noai', 'TLS failed']"
CAUSE = f"{CAUSES}[1 + (hash(row, 8) % 6)::BIGINT]"


def uniform(salt: int) -> str:
    return f"(hash(row, {salt}) % 1000003) / 1000003"


def rows(first: int, last: int) -> str:
    return f"(SELECT range AS row, {URL} AS url FROM range({first}, {last}))"


def copy(query: str, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    duckdb.execute(f"COPY ({query}) TO '{output}' (FORMAT parquet, ROW_GROUP_SIZE 10000)")


def make(layout: Layout) -> None:
    """What a download and its verification, and two scorers, leave behind."""
    scores = f"(3.2 + 3.2 * {uniform(1)}) AS aesthetic, {uniform(2)} AS pwatermark, 'en' AS language"
    every = rows(0, SAMPLES + FAILED)
    copy(f"SELECT row, url, {CAPTION} AS caption, 640 AS width, 480 AS height, {scores} FROM {every}", layout.selected)
    offsets, lengths = pictures(layout)
    size = SAMPLES // UNITS
    for unit in range(UNITS):
        name, mine = f"{unit:05d}-0-00000", rows(unit * size, (unit + 1) * size)
        if unit:
            (layout.pictures / name).symlink_to(layout.pictures / "00000-0-00000")
        # One in fifty has the bytes of its neighbour, one in a hundred nearly its hash.
        facts = (
            f"SELECT row, lpad(row::VARCHAR, 9, '0') AS key, {CAPTION} AS caption, url, {SIDE} AS width, "
            f"{SIDE} AS height, (200 + 1800 * {uniform(3)})::BIGINT AS original_width, "
            f"(200 + 1200 * {uniform(4)})::BIGINT AS original_height, {scores}, "
            "md5((CASE WHEN row % 50 = 0 THEN row + 1 ELSE row END)::VARCHAR) AS sha256, xor((hash(CASE WHEN row % "
            "100 = 2 THEN row + 1 ELSE row END) >> 1)::BIGINT, row % 2) AS phash, "
            f'{offsets}[1 + row % {PICTURES}] AS "offset", {lengths}[1 + row % {PICTURES}] AS length FROM {mine}'
        )
        copy(facts, layout.samples / f"{name}.parquet")
        given = (
            f"SELECT row, exp(8 * {uniform(5)}) AS sharpness, sqrt({uniform(6)}) AS flatness, "
            f"length({CAPTION})::INTEGER AS caption_length, "
            f"['en', 'de', 'fr', 'und'][1 + (hash(row, 7) % 4)::BIGINT] AS detected_language FROM {mine}"
        )
        copy(given, layout.scores / f"{name}.parquet")


def pictures(layout: Layout) -> tuple[list[int], list[int]]:
    """The bytes of noise, which compresses worst, in the first unit's place; where each picture begins, its length."""
    layout.pictures.mkdir(parents=True)
    random, stored = np.random.default_rng(0), []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "JPEG", quality=95)
        stored.append(buffer.getvalue())
    (layout.pictures / "00000-0-00000").write_bytes(b"".join(stored))
    lengths = [len(each) for each in stored]
    return [sum(lengths[:place]) for place in range(PICTURES)], lengths


def fail(layout: Layout) -> None:
    """What the rows leave behind that did not come."""
    gone = f"FROM {rows(SAMPLES, SAMPLES + FAILED)}"
    lost = f"SELECT row, url, 'download' AS step, {CAUSE} AS cause, NULL::BLOB AS picture {gone}"
    copy(lost, layout.rejected / "00000.parquet")
    for name, came in {"first": "FALSE", "second": "hash(row, 10) % 3 = 0"}.items():
        asked = gone if name == "first" else f"{gone} WHERE {CAUSE} IN ('timed out', 'HTTP 503')"
        copy(f"SELECT row, url {asked}", layout.part(0) / name / "rows.parquet")
        status = f"CASE WHEN {came} THEN 'success' ELSE 'failed_to_download' END AS status"
        copy(f"SELECT row, url, {status}, {CAUSE} AS error_message {asked}", layout.part(0) / name / "00000.parquet")


def selection() -> Selection:
    total = SAMPLES + FAILED
    moved = {"at": tuple(map(float, range(11))), "kept": tuple(range(total, total - 11, -1))}
    drawn = {"low": 0.0, "high": 10.0, "counts": (1,) * 40, "absent": 0, "threshold": 5.0}
    asked = {"comparison": ">", "threshold": 5.0, "chosen": total, "rows": 2 * total}
    return Selection(
        rows=2 * total,
        kept=total,
        counts=(Count(rule="aesthetic > 5", left=total, only=total // 2),),
        histograms=tuple(Histogram(score=name, **drawn) for name in NAMES),
        columns=("url", "caption", "width", "height", *NAMES),
        sweeps=tuple(Sweep(rule=f"{name} > 5", score=name, **asked, **moved) for name in NAMES),
    )


def finished(layout: Layout) -> tuple[Shard, Shard]:
    """The first shard, which is real, and one for all the others."""
    first = write_shard(Task(output=layout.output, number=0, format="jpg"))
    others = read(layout).counts[-1].left - first.samples
    return first, Shard(name="00001", samples=others, bytes=others * 60_000, sha256="0")


def measured(output: Path) -> dict[str, float]:
    """Write the report in this process: seconds and the most memory, with what its imports take."""
    shards = tuple(Shard(**each) for each in json.loads((output / "shards.json").read_text()))
    made = Manifest(kind="images", shards=shards, contract=CONTRACT, lineage={"a": 1})
    began = time.perf_counter()
    report.write(Layout(output), selection(), CHOICE, made)
    taken = time.perf_counter() - began
    # Unlike ru_maxrss, this begins anew with the program that is run.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": taken, "memory": int(peak.split()[1]) * 1024}


@pytest.mark.bench
def test_a_report_on_a_million_samples(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")
    make(layout)
    fail(layout)
    began = time.perf_counter()
    decided = plan(layout, CHOICE)
    planned = time.perf_counter() - began
    (layout.output / "shards.json").write_text(json.dumps([asdict(shard) for shard in finished(layout)]))
    command = [sys.executable, __file__, str(layout.output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    page = layout.report.stat().st_size
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"report on {SAMPLES:,} stored samples and {FAILED:,} that were not downloaded, {today}",
        f"Python {platform.python_version()}, duckdb {duckdb.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, shared",
        f"{'seconds':34}{found['seconds']:10.1f}",
        f"{'most memory of its process, GB':34}{found['memory'] / 1e9:10.2f}",
        f"{'the page, MB (pictures of noise)':34}{page / 1e6:10.2f}",
        f"{'seconds of the plan before it':34}{planned:10.1f}",
        f"{'samples in the set':34}{decided.counts[-1].left:10,}",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-report.txt").write_text("\n".join(lines) + "\n")
    assert found["seconds"] < BOUND_SECONDS, lines
    assert page < BOUND_BYTES, lines


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]))))
