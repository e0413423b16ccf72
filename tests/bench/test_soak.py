"""build_shards.py on 5,000 pictures and every planted fault, killed 100 times: counts, pixels and bytes at the end.

`make bench` runs it, some twenty minutes; BIGDIFF_SOAK_KILLS asks for another number. What it found goes to
tests/bench/results/ with the date. Each life of the command is ended by SIGKILL a random time after a phase that is
drawn among those ahead has begun, until that many kills have hit; whenever a set is finished it must have the bytes of
the undisturbed one, which another number of processes made, and the next begins.
"""

import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.prep.layout import WORK
from bigdiff.quickstart.dataset import META, Options, draw, metadata, rows
from bigdiff.quickstart.faults import AWKWARD, FAULTY, SOUND
from bigdiff.quickstart.files import truth
from bigdiff.quickstart.scenes import scene
from bigdiff.quickstart.server import serve
from bigdiff.runtime.files import sha256

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
COUNT, KILLS, SIDE = 5_000, int(os.environ.get("BIGDIFF_SOAK_KILLS", "100")), 96
SETTINGS = ["download.rows_per_file=500", "download.rows_per_part=2500", "pack.samples_per_shard=700"]
PHASES = (  # the first of these that is there tells the phase
    ("reporting", "report/index.html*"),
    ("packing", "_work/plan.parquet"),
    ("scoring, planning", "_work/scores/*"),
    ("verifying", "_work/pictures/*"),
    ("downloading", "_work/download/00000/arguments.json"),
    ("selecting", "_work/settings.json"),
)
START = 3.0  # seconds of imports, and as many beyond
LINGER = {"downloading": 12.0, "verifying": 5.0, "scoring, planning": 2.0, "packing": 2.0}  # seconds, at most


def finals(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): sha256(path) for path in sorted(output.rglob("*")) if path.is_file()}


def phase(output: Path) -> str:
    return next((name for name, pattern in PHASES if any(output.glob(pattern))), "starting")


def wrong_pixels(output: Path, options: Options) -> int:
    """Stored pictures that are not what was drawn."""
    made, wrong = rows(options), 0
    by_url = {
        url: row for url, row in zip(metadata(made, options)["URL"], made, strict=True) if row.kind != "duplicate_url"
    }
    for file in sorted(output.glob("*.parquet")):
        content = file.with_suffix(".tar").read_bytes()
        for sample in pq.read_table(file).to_pylist():
            row = by_url[sample["url"]]
            stored = content[sample["jpg_offset"] : sample["jpg_offset"] + sample["jpg_length"]]
            shown = np.asarray(Image.open(io.BytesIO(stored))).astype(int)
            wanted = np.asarray(truth(SOUND if "duplicate" in row.kind else row.kind, scene(0, row.scene), SIDE))
            wrong += bool(np.abs(shown - wanted).mean() >= (4.0 if row.path.endswith("webp") else 2.0))
    return wrong


def miscounted(output: Path, options: Options) -> list[str]:
    """Planted causes whose number in the report is another."""
    page = (output / "report" / "index.html").read_text()
    planted = Counter((kind.step, kind.cause) for kind in options.faulty for _ in range(kind.count))
    found = []
    for (step, cause), count in planted.items():
        shown = cause.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#x27;")
        _, _, cells = page.partition(f"<tr><td>{shown}</td>")
        numbers = [cell.partition("</td>")[0] for cell in cells.split('<td class="n">')[1:4]]
        if (numbers[1] if step == "select" else numbers[0]).replace(",", "") != str(count):
            found.append(f"{cause}: {numbers}, planted {count}")
    return found


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_no_byte(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = Options(count=COUNT, awkward=AWKWARD, faulty=FAULTY, port=port)
    draw(tmp_path / "source", options, processes=2)
    door = [sys.executable, str(ROOT / "data_prep" / "build_shards.py"), "--config", "quickstart"]
    common = [*door, "--input", str(tmp_path / "source" / META), *SETTINGS]
    four = ["pack.processes=4", "download.processes=4"]
    chosen, struck, finished, output = random.Random(0), Counter[str](), 0, tmp_path / "killed"
    with serve(tmp_path / "source", port), (tmp_path / "log").open("wb") as log:
        whole = [*common, "--output", str(tmp_path / "whole"), "pack.processes=1", "download.processes=1"]
        begin = time.monotonic()
        subprocess.run(whole, stderr=log, cwd=ROOT, check=True, timeout=600)
        seconds, wanted = time.monotonic() - begin, finals(tmp_path / "whole")
        while sum(struck.values()) < KILLS:
            process = subprocess.Popen(
                [*common, "--output", str(output), *(four if chosen.random() < 0.5 else [])],
                stderr=log,
                stdout=log,
                cwd=ROOT,
                start_new_session=True,
            )
            now = phase(output)
            ahead = [name for name, _ in PHASES[: [*dict(PHASES), "starting"].index(now)]]
            awaited = chosen.choice([*ahead, now])
            while process.poll() is None and phase(output) != awaited:
                time.sleep(0.005)
            began = START if awaited == now else 0.0  # a life that goes on in this phase has its imports first
            try:
                code = process.wait(began + chosen.uniform(0.0, began + LINGER.get(awaited, 0.5)))
            except subprocess.TimeoutExpired:
                struck[phase(output)] += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                continue
            assert code == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
            assert finals(output) == wanted
            finished, output = finished + 1, tmp_path / f"killed-{finished + 1}"
        subprocess.run([*common, "--output", str(output)], stderr=log, cwd=ROOT, check=True, timeout=600)
    assert finals(output) == wanted
    assert not (output / WORK).exists()
    assert miscounted(output, options) == []
    assert wrong_pixels(output, options) == 0
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"build_shards.py on {COUNT:,} sound pictures and {sum(kind.count for kind in FAULTY)} planted faults, {day}",
        f"undisturbed, one process: {seconds:.0f} s; {sum(struck.values())} kills, {finished + 1} sets finished after",
        "them, by one, two and four processes: all have the bytes of the undisturbed one; every count per cause is the",
        "planted number; no stored picture differs from what was drawn",
        "",
        "where the kills struck (the newest finished step is the one before):",
        *(f"{name:12} {count:3}" for name, count in struck.most_common()),
    ]
    (RESULTS / f"{day}-soak.txt").write_text("\n".join(lines) + "\n")
