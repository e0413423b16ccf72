"""Seconds from nothing to the samples of any step of a run over two billion samples, and of steps after that."""

import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bigdiff.data.course import Course
from bigdiff.data.mixture import Source

RESULTS = Path(__file__).parent / "results"
ROUNDS, SAMPLES, TOTAL, LANES = 5, 2_000_000_000, 2048, 64
BUCKETS = tuple(f"{width}x{512 * 512 // width // 64 * 64}" for width in range(384, 896, 64))


def sources(shards: int, kind: str) -> tuple[Source, ...]:
    sizes = np.full(shards, SAMPLES // shards)
    names = tuple(BUCKETS[number % len(BUCKETS)] for number in range(shards)) if kind != "one set" else ()
    if kind != "two sets in buckets":
        return (Source(name="a", sizes=sizes, buckets=names),)
    half = shards // 2
    return (
        Source(name="a", sizes=sizes[:half], buckets=names[:half], proportion=0.7),
        Source(name="b", sizes=sizes[half:], buckets=names[half:]),
    )


@pytest.mark.bench
def test_seconds_to_any_step() -> None:
    lines = [
        f"{datetime.now(UTC).date().isoformat()}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores; medians of {ROUNDS} rounds",
        f"2e9 samples, batch {TOTAL}, {LANES} lanes, window 64: a new course and 32 samples of a lane at some "
        "step; then the same lane's next steps",
        f"{'':24}{'shards':>12}{'cold, s':>10}{'warm, us':>10}",
    ]
    for kind in ("one set", "in buckets", "two sets in buckets"):
        for shards in (200_000, 2_000_000):
            given, cold, warm = sources(shards, kind), [], []
            for number in range(ROUNDS):
                step = 700_000 + 12_345 * number
                began = time.perf_counter()
                course = Course(sources=given, seed=number, window=64, lanes=LANES, total=TOTAL)
                course.locate(step, 0, TOTAL // LANES)
                cold.append(time.perf_counter() - began)
                for following in range(step, step + 200):  # the windows of all cells are laid out
                    course.locate(following, 0, TOTAL // LANES)
                began = time.perf_counter()
                for following in range(step + 200, step + 300):
                    course.locate(following, 0, TOTAL // LANES)
                warm.append((time.perf_counter() - began) / 100)
            figures = f"{statistics.median(cold):10.3f}{1e6 * statistics.median(warm):10.0f}"
            lines.append(f"{kind:24}{shards:12,}{figures}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{datetime.now(UTC).date().isoformat()}-seeking.txt").write_text("\n".join(lines) + "\n")
