"""duckdb with a bounded memory, a bar on standard error for long queries, and Ctrl-C that ends them at once."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
from tqdm import tqdm

from bigdiff.config.errors import RunError

_LOOK: Final = 0.1  # seconds between two looks at a query
_QUIET: Final = 2.0  # seconds without a bar


@contextmanager
def database(temporary: Path | None, memory_gb: float | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills into `temporary`, a folder of its own that is deleted before and afterwards.

    None is a folder under the system's place for temporary files. `memory_gb` is in 1e9 bytes; None is duckdb's own
    limit.
    """
    if temporary is None:
        with tempfile.TemporaryDirectory(prefix="bigdiff-") as folder, _connect(folder, memory_gb) as base:
            yield base
        return
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process had spilled
    try:
        with _connect(str(temporary), memory_gb) as base:
            yield base
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def run(base: duckdb.DuckDBPyConnection, query: str, label: str) -> list[tuple[Any, ...]]:
    """The rows of `query`, which is ended when this is interrupted.

    Raises:
        RunError: when memory or disk do not suffice.
        duckdb.Error: for everything else.
    """
    with ThreadPoolExecutor(1) as thread:
        asked: Future[list[tuple[Any, ...]]] = thread.submit(lambda: base.execute(query).fetchall())
        try:
            with tqdm(total=100.0, desc=label, unit="%", delay=_QUIET, bar_format="{l_bar}{bar}| {elapsed}") as bar:
                while not wait([asked], timeout=_LOOK).done:
                    bar.update(max(base.query_progress() - bar.n, 0.0))
                found = asked.result()
                bar.update(bar.total - bar.n)
            return found
        except duckdb.Error as error:
            # Of disk, too, where something has been spilled.
            if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error):
                said = str(error).strip().splitlines()[0]
                folder = base.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
                raise RunError(f"{label}: {said} Raise select.memory_gb, or make room in {folder}") from error
            raise
        except BaseException:
            while not wait([asked], timeout=_LOOK).done:
                base.interrupt()  # again: one that comes before the query has begun is lost
            raise


def quoted(text: str | Path) -> str:
    """A string of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def named(column: str) -> str:
    """A name of SQL."""
    return '"' + column.replace('"', '""') + '"'


@contextmanager
def _connect(folder: str, memory_gb: float | None) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as base:
        base.execute(f"SET temp_directory = {quoted(folder)}")
        base.execute("SET enable_progress_bar = true")  # without it there is no progress to ask for
        base.execute("SET enable_progress_bar_print = false")
        if memory_gb is not None:
            base.execute(f"SET memory_limit = '{memory_gb * 1e9:.0f} B'")
        yield base
