"""Rows of URLs to files of bytes, with img2dataset.

img2dataset's own classes do the work (reader, downloader, tar writer, statistics), put together here rather than by its
`download()`, which would start a logging process, import four seconds of libraries in every worker, wait for ever
for a worker that was killed, and end with 0 on Ctrl-C. One function of it is replaced: its fetch (bigdiff.prep.fetch).

Pictures are stored as they came: nothing is decoded here, so that it is done once, and right, by bigdiff.prep.picture.
A file of a part is finished when its `NNNNN_stats.json` can be read; what a killed process left unfinished is fetched
anew.
"""

import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol

import img2dataset.downloader
import pyarrow as pa
import pyarrow.parquet as pq
from img2dataset.reader import Reader
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Download
from bigdiff.prep.fetch import FetchError, fetch_patiently, is_retryable
from bigdiff.prep.layout import PUBLISHED, ROWS, STATISTICS
from bigdiff.runtime.files import replacing
from bigdiff.runtime.workers import end_with_parent

FILE_DIGITS: Final = 5
_TEMPORARY: Final = "_tmp-"


class Distributor(Protocol):
    """Who starts the processes in which the downloader runs."""

    def each(self, downloader: img2dataset.downloader.Downloader, reader: Reader) -> None:
        """Call the downloader with every file of the reader, and once more with those that failed."""


@dataclass(frozen=True, slots=True)
class Forked:
    """Processes of this machine."""

    pool: ProcessPoolExecutor

    def each(self, downloader: img2dataset.downloader.Downloader, reader: Reader) -> None:
        """As Distributor says."""
        failed = [shard for succeeded, shard in self.pool.map(downloader, list(reader)) if not succeeded]
        list(self.pool.map(downloader, failed))


@contextmanager
def forked(limits: Download) -> Iterator[Forked]:
    """Processes that share what took seconds to import. To be entered before anything here has started a thread."""
    with ProcessPoolExecutor(
        limits.processes, mp_context=get_context("fork"), initializer=prepare, initargs=(limits, os.getpid())
    ) as pool:
        pool.submit(os.getpid).result()  # the first task starts them all
        yield Forked(pool)


def download_rows(distributor: Distributor, folder: Path, limits: Download, tries: int) -> None:
    """Fetch the rows of `folder`/rows.parquet into `folder`/NNNNN.{tar,parquet}; finished files are left alone.

    Raises:
        RunError: when a file failed twice.
    """
    wanted = _files(folder, limits)
    published = {int(path.name) for path in (folder / PUBLISHED).glob("[0-9]*")}
    done = _settled(folder, wanted & published)
    if done == wanted:
        return
    for abandoned in folder.glob(f"{_TEMPORARY}*"):  # a killed job's; one of Spark's tasks may still be at work in it
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder / f"{_TEMPORARY}{os.urandom(8).hex()}"
    temporary.mkdir()
    reader = Reader(
        url_list=str(folder / ROWS),
        input_format="parquet",
        url_col="url",
        caption_col=None,
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=["row"],
        number_sample_per_shard=limits.rows_per_file,
        done_shards=done,
        tmp_path=str(temporary),
    )
    distributor.each(_downloader(folder, limits, tries), reader)
    left = wanted - _settled(folder, wanted)
    if left:
        raise RunError(f"{len(left)} of {len(wanted)} files of {folder} could not be written; the lines above say why")


@dataclass(frozen=True, slots=True)
class Fetch:
    """What stands in for img2dataset's `download_image_with_retry`.

    Of its arguments `retries` is used, as the number of tries; the others say less than `limits`.
    """

    limits: Download

    def __call__(
        self,
        row: tuple[int, str],
        timeout: float,
        retries: int,
        user_agent_token: str,
        disallowed_header_directives: list[str],
    ) -> tuple[int, io.BytesIO | None, str | None]:
        """(key, bytes, None) or (key, None, cause)."""
        key, url = row
        try:
            return key, io.BytesIO(fetch_patiently(url, self.limits, retries)), None
        except FetchError as error:
            return key, None, error.cause
        except Exception as error:  # noqa: BLE001 (one odd server must not stop a million rows; it is counted and reported)
            return key, None, f"unexpected {type(error).__name__}"


def prepare(limits: Download, parent: int) -> None:
    """Make this process, which `parent` started, ready for the downloader."""
    end_with_parent(parent)
    img2dataset.downloader.download_image_with_retry = Fetch(limits)


def _downloader(folder: Path, limits: Download, tries: int) -> img2dataset.downloader.Downloader:
    return img2dataset.downloader.Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(image_size=0, resize_mode="no", resize_only_if_bigger=False, disable_all_reencoding=True),
        thread_count=limits.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["row", "url"],
        timeout=limits.timeout_seconds,
        number_sample_per_shard=limits.rows_per_file,
        oom_shard_count=FILE_DIGITS,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",  # only a name here: the bytes are what the server sent
        retries=tries,
        user_agent_token=limits.user_agent_token,
        disallowed_header_directives=list(limits.optout_directives),
    )


def _files(folder: Path, limits: Download) -> set[int]:
    """The numbers of a pass's files."""
    return set(range(math.ceil(pq.read_metadata(folder / ROWS).num_rows / limits.rows_per_file)))


def _settled(folder: Path, numbers: set[int]) -> set[int]:
    """Move what tasks of Spark have published of `numbers` to its place; gives the numbers of all finished files.

    A finished file is never replaced. Files are asked for by name, because a listing of a network folder may be old.
    """
    for number in numbers - _finished(folder):
        name = f"{number:0{FILE_DIGITS}d}"
        for part in (f"{name}.tar", f"{name}.parquet", name + STATISTICS):
            with suppress(FileNotFoundError):  # not published, or moved before a kill
                (folder / PUBLISHED / name / part).replace(folder / part)
    return _finished(folder)


def _finished(folder: Path) -> set[int]:
    """Numbers of the files whose statistics can be read; statistics cut short by a kill are removed."""
    done = set()
    for file in folder.glob(f"*{STATISTICS}"):
        try:
            json.loads(file.read_text())
        except json.JSONDecodeError:
            file.unlink()
        else:
            done.add(int(file.name.removesuffix(STATISTICS)))
    return done


def write_failed(first: Path, output: Path, limits: Download) -> None:
    """The rows of a finished first pass that may succeed in a second one."""
    rows: list[int] = []
    urls: list[str] = []
    for number in sorted(_files(first, limits)):
        file = first / f"{number:0{FILE_DIGITS}d}.parquet"
        table = pq.read_table(file, columns=["row", "url", "status", "error_message"])
        for row in table.to_pylist():
            if row["status"] != "success" and is_retryable(row["error_message"]):
                rows.append(row["row"])
                urls.append(row["url"])
    found = pa.table({"row": pa.array(rows, pa.int64()), "url": pa.array(urls, pa.string())}).sort_by("row")
    with replacing(output) as temporary:
        pq.write_table(found, temporary)
