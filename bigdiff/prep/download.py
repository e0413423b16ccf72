"""img2dataset as a process group of its own: started part by part, watched, ended with this one, cleared up."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import pyarrow.parquet as pq
from tqdm import tqdm

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Download
from bigdiff.prep.layout import DONE, PASSES, PUBLISHED, ROWS, STATISTICS, Layout
from bigdiff.prep.parts import fetched
from bigdiff.runtime.files import replacing, write_json
from bigdiff.runtime.workers import Spread

MARK: Final = "BIGDIFF_DOWNLOAD"  # environment variable of every process that downloads: its part's folder
_LOG: Final = "log.txt"
_LOOK: Final = 0.1  # seconds between two looks at the process


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One part, to be fetched on another machine."""

    part: Path
    limits: Download


def download(layout: Layout, limits: Download, spread: Spread, say: Callable[[str], None]) -> None:
    """Fetch every row of the selection that has not been fetched, part by part; say what each brought.

    Raises:
        RunError: when a part fails or takes longer than its deadline.
    """
    parts = _write_parts(layout, limits)
    if spread.machines > 1:
        tasks = [Task(part=part, limits=limits) for part in parts if not (part / DONE).exists()]
        for line in spread.each(fetch, tasks, "downloading"):
            say(line)
        return
    end_leftovers(layout.work)
    with tqdm(total=pq.read_metadata(layout.selected).num_rows, desc="downloading", unit="row") as bar:
        for part in parts:
            if not (part / DONE).exists():
                _run(part, limits, bar)
                say(fetched(part))
            bar.update(_end(part, limits, bar.total) - bar.n)


def fetch(task: Task) -> str:
    """Fetch one part, unless that is done, and tell what it brought.

    Raises:
        RunError: when it fails or takes longer than its deadline.
    """
    if (task.part / DONE).exists():
        return fetched(task.part)
    end_leftovers(task.part)
    rows = pq.read_metadata(task.part / PASSES[0] / ROWS).num_rows
    with tqdm(total=_begin(task.part, task.limits) + rows, desc=f"downloading {task.part.name}", unit="row") as bar:
        _run(task.part, task.limits, bar)
    return fetched(task.part)


def end_leftovers(folder: Path) -> None:
    """End the processes of this machine that a killed job has left fetching parts in or below `folder`.

    Two writers on one file would damage it. They are known by an environment variable with the part's path, so nobody
    else's process can be meant.
    """
    while found := _marked(folder):
        for process in found:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process, signal.SIGKILL)
        time.sleep(_LOOK)


def _marked(folder: Path) -> list[int]:
    wanted = f"{MARK}={folder.resolve()}/".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if any((variable + b"/").startswith(wanted) for variable in environment.split(b"\0")):
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


def _run(part: Path, limits: Download, bar: "tqdm[None]") -> None:
    """One part's process, from start to end; nothing of it survives this call."""
    arguments = part / "arguments.json"
    write_json(arguments, {"folder": str(part.resolve()), "parent": os.getpid(), "limits": asdict(limits)})
    end = time.monotonic() + limits.part_deadline_seconds
    with (part / _LOG).open("ab") as log, _group(arguments, part, log) as process:
        while (code := process.poll()) is None:
            if time.monotonic() > end:
                raise RunError(
                    f"part {part.name} was not fetched in download.part_deadline_seconds="
                    f"{limits.part_deadline_seconds:g}: the same command continues it; raise that setting if it moved"
                )
            files = _files_of(part / PASSES[0])
            bar.update(min(_begin(part, limits) + files * limits.rows_per_file, _end(part, limits, bar.total)) - bar.n)
            time.sleep(_LOOK)
    if code:
        last = (part / _LOG).read_text(errors="replace").strip().splitlines()[-1:]
        raise RunError(f"downloading part {part.name} ended with code {code}: {' '.join(last)} (see {part / _LOG})")


def _files_of(first: Path) -> int:
    """How many files of a pass are there, whether or not Spark's driver has moved them to their place."""
    places = (f"*{STATISTICS}", f"{PUBLISHED}/*/*{STATISTICS}")
    return len({file.name for place in places for file in first.glob(place)})


def _begin(part: Path, limits: Download) -> int:
    """The first row of a part; its folder's name is its number."""
    return int(part.name) * limits.rows_per_part


def _end(part: Path, limits: Download, rows: int) -> int:
    """The row after a part's last."""
    return min(_begin(part, limits) + limits.rows_per_part, rows)


@contextmanager
def _group(arguments: Path, part: Path, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """The download process in a group of its own, all of which is killed on the way out, Ctrl-C included."""
    proxyless = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    environment = {
        **os.environ,
        MARK: str(part.resolve()),
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
        end_leftovers(part)  # Spark's Python processes are a group of their own
