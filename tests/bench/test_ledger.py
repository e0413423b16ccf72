"""What the audit costs a training: bytes and microseconds per step and rank, and seconds to read them again."""

import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bigdiff.data.damage import Consumed
from bigdiff.data.ledger import Header, Input, Ledger, new_start
from bigdiff.data.pages import read

RESULTS = Path(__file__).parent / "results"
STEPS, TOTAL = 20_000, 2048


@pytest.mark.bench
def test_cost_of_a_record(tmp_path: Path) -> None:
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"{today}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; {STEPS} steps"
    ]
    for batches in (1, 8, 64):
        micro = TOTAL // batches
        header = Header(
            start=new_start(tmp_path),
            step=0,
            rank=0,
            size=1,
            fingerprint="00" * 32,
            total=TOTAL,
            seed=0,
            window=64,
            lanes=1,
            kind="latents",
            inputs=(Input(location="/set", manifest="00" * 32, share={}),),
        )
        ledger, taken = Ledger(tmp_path, header), []
        empty = ledger.file.stat().st_size
        for step in range(STEPS):
            consumed = [
                Consumed(position=step * TOTAL + number * micro, samples=micro, digest=step ^ number, substituted=())
                for number in range(batches)
            ]
            began = time.perf_counter()
            ledger.write(step, consumed)
            taken.append(time.perf_counter() - began)
        ledger.close()
        began = time.perf_counter()
        pages = read(ledger.file)
        seconds = time.perf_counter() - began
        assert pages is not None and len(pages.steps) == STEPS
        lines.append(
            f"{batches:3} micro-batches a step: {(ledger.file.stat().st_size - empty) / STEPS:.1f} bytes, "
            f"{1e6 * statistics.median(taken):.1f} us to write (median), {1e6 * seconds / STEPS:.1f} us to read"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-ledger.txt").write_text("\n".join(lines) + "\n")
