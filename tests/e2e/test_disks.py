"""A run whose disk fills up, is read-only or has changed what it held: what it says, what it keeps, how it goes on."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bigdiff.checkpoint import layout, reader

if TYPE_CHECKING:
    from conftest import Ranks

Start = Callable[..., "Ranks"]
STEPS, EVERY = 24, 4
COMMON = (f"steps={STEPS}", f"checkpoint.every={EVERY}", "checkpoint.keep=9")


def remount(disk: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(disk)], check=True)


def steps(run: Path) -> list[int]:
    return [layout.step_of(folder) for folder in layout.saved(run)]


def test_a_full_a_read_only_and_a_bad_disk(start: Start, mounted: Callable[..., Path], tmp_path: Path) -> None:
    start(2, *COMMON, "name=calm").wait()
    size = sum(file.stat().st_size for file in layout.checkpoint(tmp_path / "calm", STEPS).iterdir())
    disk = mounted(f"size={3 * size + size // 2}")
    run, again = disk / "toy", (*COMMON, f"runs={disk}", "name=toy")

    full = start(2, *again)
    for text in full.wait():
        last = text.splitlines()[-1]
        assert last.startswith("failed: checkpoint ") and "No space left on device" in last, text[-3000:]
        assert "are free: make room, or keep fewer" in last
        assert f"the last whole checkpoint is step-{max(steps(run)):08d}" in last
    assert full.codes() == [1, 1]
    assert steps(run) and [reader.damaged(folder) for folder in layout.saved(run)] == [""] * len(steps(run))

    remount(disk, "ro")
    for text in (read_only := start(2, *again)).wait():
        assert "Read-only file system" in text and "UsageError" in text, text[-3000:]
    assert read_only.codes() == [1, 1]

    remount(disk, "rw", f"size={20 * size}")
    newest, *before = layout.saved(run)
    victim = next(newest.glob("rank-00001-*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 16
    victim.write_bytes(content)
    texts = start(2, *again).wait()
    assert texts[0].splitlines()[-1] == f"finished {STEPS}"
    assert f"from step {layout.step_of(before[0])}" in texts[0]
    assert "warning: " in texts[0] and victim.name in texts[0]
    for which in ("raw", "ema", "exp_avg_sq"):
        calm, ours = (reader.read_weights(layout.checkpoint(one, STEPS), which) for one in (tmp_path / "calm", run))
        assert all(torch.equal(calm[name], ours[name]) for name in calm)
