"""Rank 0's part of a save: wait until all ranks' files lie there, write the index, give the folder its name."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.checkpoint import index, layout
from bigdiff.checkpoint.content import Content
from bigdiff.checkpoint.index import File, Index
from bigdiff.config.errors import RunError
from bigdiff.runtime.files import sync

# seconds between looks at the folder, at first and at most: a shared file system answers from a cache for a while
SOON, LATE = 0.01, 1.0
SHOWN: Final = 8  # missing ranks that are named


class GivenUp(Exception):
    """The run ended before the other ranks had written: no failure of this save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One save, without its vectors."""

    final: Path
    aside: Path  # where it is written
    content: Content  # its tensors are not looked at any more
    mark: str  # of the life and the attempt


def records(aside: Path, size: int, seconds: float, ending: Callable[[], float]) -> list[File]:
    """What all ranks wrote, in their order; waits for them.

    `ending()` is the time.monotonic() at which a run that ends waits no longer.

    Raises:
        RunError: naming the ranks whose files are not there after `seconds`.
        GivenUp: when it ended before.
    """
    found: dict[int, File] = {}
    deadline, pause = time.monotonic() + seconds, SOON
    while True:
        names = set(os.listdir(aside))
        for rank in range(size):
            if rank not in found and layout.record(rank, size) in names:
                file = _record(aside, rank, size)
                if file is not None:
                    found[rank] = file
        if len(found) == size:
            return [found[rank] for rank in range(size)]
        if time.monotonic() > ending():
            raise GivenUp
        if time.monotonic() > deadline:
            missing = [rank for rank in range(size) if rank not in found]
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise RunError(
                f"rank {', '.join(map(str, missing[:SHOWN]))}{more} of {size} had not written to {aside} within "
                f"{seconds:g} s of rank 0 (checkpoint.wait_seconds)"
            )
        time.sleep(pause)
        pause = min(1.5 * pause, LATE)


def _record(aside: Path, rank: int, size: int) -> File | None:
    file = File(**json.loads((aside / layout.record(rank, size)).read_bytes()))
    try:
        # the size may come from a cache that is behind: then it is looked at again
        return file if (aside / file.name).stat().st_size == file.bytes else None
    except FileNotFoundError:
        return None


def commit(attempt: Attempt, files: list[File], pieces: bytes) -> None:
    """Write the index of a folder that holds all `files`, and rename it."""
    aside, final, content = attempt.aside, attempt.final, attempt.content
    for rank in range(len(files)):
        (aside / layout.record(rank, len(files))).unlink()
    written = Index(
        state=content.state,
        identity=content.identity,
        layout=content.partition.layout,
        vectors=content.names,
        files=tuple(files),
        pieces=index.write_pieces(aside, pieces),
        loss=content.loss if content.loss is not None and math.isfinite(content.loss) else None,
        about=content.about,
    )
    index.write(aside, written)
    replaced = layout.aside(final, layout.REPLACED, attempt.mark)
    if final.exists():  # a damaged one that was passed over on the way here, or one of an earlier life that lived on
        final.rename(replaced)
    aside.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)  # there is none, as a rule; the next life clears what stays
