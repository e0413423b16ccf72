"""Seconds and memory of the report of a run with a million readings.

`metrics.jsonl` is made up, with the tags of a run on several ranks with a price, an average and validation. The report
is made in a process of its own; its time on the processor is there because the clock counts what else runs, too.
"""

import json
import os
import platform
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bigdiff.config.load import dump, load_stage

RESULTS = Path(__file__).parent / "results"
READINGS, BOUND_SECONDS = 1_000_000, 60
TAGS = (
    *("train/loss", "train/grad_norm", "train/lr", "train/samples_seen", "distance/ema/0.9999"),
    *(f"speed/{name}" for name in ("images_per_second", "data_wait_fraction", "slowest_rank", "hours_left", "mfu")),
    *(f"speed/{name}" for name in ("checkpoint_stall_seconds", "communication_fraction", "restarts")),
    *("speed/tflops_per_device", "memory/peak_gb", "data/damaged", "data/tombstoned", "recovery/skipped_steps"),
    *("cost/so_far", "cost/left", *(f"train/loss_t/{number}" for number in range(10))),
)
VALIDATED = ("loss", "error", "loss_ema", "error_ema", *(f"loss_t/{number}" for number in range(10)))
SCRIPT = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from bigdiff.report import page
html = page.write(Path(sys.argv[1]))
used, status = resource.getrusage(resource.RUSAGE_SELF), Path("/proc/self/status").read_text()
memory = int(status.partition("VmHWM:")[2].split()[0])  # KiB; ru_maxrss is the parent's, where that has more
print(json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime, memory / 1e6, html.stat().st_size]))
"""


def made(run: Path) -> int:
    """A run's folder with its readings; their bytes."""
    chance = random.Random(0)
    run.mkdir()
    (run / "config.yaml").write_text(dump(load_stage("256px", ["name=long"])))
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, READINGS + 1):
            line = {"step": step, "samples_seen": 2048 * step, "time": 1.7e9 + 0.4 * step}
            line |= {tag: chance.random() for tag in TAGS}
            if step % 1000 == 0:
                line |= {f"validation/{name}": chance.random() for name in VALIDATED}
            file.write(json.dumps(line) + "\n")
    return (run / "metrics.jsonl").stat().st_size


@pytest.mark.bench
def test_a_million_readings_are_reported_within_a_minute(tmp_path: Path) -> None:
    size = made(tmp_path / "long")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "long")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, processor, memory, page = json.loads(done.stdout.splitlines()[-1])
    date = datetime.now(UTC).date().isoformat()
    lines = [
        f"report of a run with {READINGS:,} readings of {len(TAGS)} tags, {size / 1e9:.2f} GB, {date}",
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, shared",
        f"seconds on the clock                   {seconds:5.1f}",
        f"seconds of the processors              {processor:5.1f}",
        f"most memory of its process, GB         {memory:5.2f}",
        f"the page, MB                           {page / 1e6:5.2f}",
    ]
    (RESULTS / f"{date}-run-report.txt").write_text("\n".join(lines) + "\n")
    assert seconds < BOUND_SECONDS
