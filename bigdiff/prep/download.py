"""img2dataset as a process group of its own: started part by part, watched, ended with this one, cleared up."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

import pyarrow.parquet as pq
from tqdm import tqdm

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Download
from bigdiff.prep.layout import DONE, PASSES, ROWS, Layout
from bigdiff.runtime.files import replacing, write_json

MARK: Final = "BIGDIFF_DOWNLOAD"  # environment variable of every process of a job: its work folder
_LOG: Final = "log.txt"
_LOOK: Final = 0.1  # seconds between two looks at the process


def download(layout: Layout, limits: Download) -> None:
    """Fetch every row of the selection that has not been fetched, part by part.

    Raises:
        RunError: when a part fails or takes longer than its deadline.
    """
    end_leftovers(layout.work)
    parts = _write_parts(layout, limits)
    with tqdm(total=pq.read_metadata(layout.selected).num_rows, desc="downloading", unit="row") as bar:
        for part in parts:
            if not (part / DONE).exists():
                _run(part, layout.work, limits, bar)
            bar.update(_end(part, limits, bar.total) - bar.n)


def end_leftovers(work: Path) -> None:
    """End the processes that a killed job on `work` has left running: two writers on one file would damage it.

    They are known by an environment variable with the folder's path, so nobody else's process can be meant.
    """
    while found := _marked(work):
        for process in found:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process, signal.SIGKILL)
        time.sleep(_LOOK)


def _marked(work: Path) -> list[int]:
    wanted = f"{MARK}={work.resolve()}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def _write_parts(layout: Layout, limits: Download) -> list[Path]:
    """The folders of all parts, each with the rows that img2dataset is to fetch."""
    rows = pq.read_metadata(layout.selected).num_rows
    folders = [layout.part(number) for number in range(math.ceil(rows / limits.rows_per_part))]
    for number, folder in enumerate(folders):
        final = folder / PASSES[0] / ROWS
        if final.exists():
            continue
        first = number * limits.rows_per_part
        span = [("row", ">=", first), ("row", "<", first + limits.rows_per_part)]
        with replacing(final) as temporary:
            pq.write_table(pq.read_table(layout.selected, columns=["row", "url"], filters=span), temporary)
    return folders


def _run(part: Path, work: Path, limits: Download, bar: "tqdm[None]") -> None:
    """One part's process, from start to end; nothing of it survives this call."""
    arguments = part / "arguments.json"
    write_json(arguments, {"folder": str(part.resolve()), "parent": os.getpid(), "limits": asdict(limits)})
    end = time.monotonic() + limits.part_deadline_seconds
    with (part / _LOG).open("ab") as log, _group(arguments, work, log) as process:
        while (code := process.poll()) is None:
            if time.monotonic() > end:
                raise RunError(
                    f"part {part.name} was not fetched in download.part_deadline_seconds="
                    f"{limits.part_deadline_seconds:g}: the same command continues it; raise that setting if it moved"
                )
            files = sum(1 for _ in (part / PASSES[0]).glob("*_stats.json"))
            bar.update(min(_begin(part, limits) + files * limits.rows_per_file, _end(part, limits, bar.total)) - bar.n)
            time.sleep(_LOOK)
    if code:
        last = (part / _LOG).read_text(errors="replace").strip().splitlines()[-1:]
        raise RunError(f"downloading part {part.name} ended with code {code}: {' '.join(last)} (see {part / _LOG})")


def _begin(part: Path, limits: Download) -> int:
    """The first row of a part; its folder's name is its number."""
    return int(part.name) * limits.rows_per_part


def _end(part: Path, limits: Download, rows: int) -> int:
    """The row after a part's last."""
    return min(_begin(part, limits) + limits.rows_per_part, rows)


@contextmanager
def _group(arguments: Path, work: Path, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """The download process in a group of its own, all of which is killed on the way out, Ctrl-C included."""
    proxyless = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    environment = {
        **os.environ,
        MARK: str(work.resolve()),
        "NO_ALBUMENTATIONS_UPDATE": "1",  # it would call out when it is imported
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "no_proxy": ",".join(filter(None, [proxyless, "localhost,127.0.0.1"])),
    }
    command = [sys.executable, "-m", "bigdiff.prep.img2dataset_part", str(arguments)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
