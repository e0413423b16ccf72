"""img2dataset's pyspark distributor around the downloader of bigdiff.prep.img2dataset_rows.

Spark starts a task anew when it takes its executor for lost, and the executors of a killed driver go on for seconds, on
other machines too, where nobody here can end them. So a task writes into a folder of its own and publishes that by one
rename, which only the first of several can do, and the driver alone moves files to their place.
"""

import copy
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import img2dataset.downloader
from img2dataset.distributor import pyspark_distributor
from img2dataset.reader import Reader
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Download
from bigdiff.prep.download import MARK
from bigdiff.prep.img2dataset_rows import FILE_DIGITS, prepare
from bigdiff.prep.layout import PUBLISHED

# What executors are given of this process's environment; they are started by somebody else.
_GIVEN: Final = (MARK, "NO_ALBUMENTATIONS_UPDATE", "WANDB_MODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_JVM_SECONDS: Final = 60.0  # for the driver's JVM to end
_GONE: Final = (
    Py4JError,
    ConnectionError,
)  # what a call into the JVM ends with; the second when there is none any more
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What Spark's Python processes call."""

    downloader: img2dataset.downloader.Downloader
    limits: Download

    def __call__(self, shard: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Whether the file could be written, by this attempt or another, and the argument.

        Raises:
            RunError: on a machine that does not see the driver's folders.
        """
        number, rows = shard
        folder, temporary = Path(self.downloader.output_folder), Path(rows).parent
        if not temporary.is_dir():
            raise RunError(f"{socket.gethostname()} has no {folder}: Spark's executors must see the driver's folders")
        prepare(self.limits, os.getppid())  # it ends with Spark's daemon, and that with its JVM
        own = temporary / os.urandom(8).hex()
        own.mkdir()
        downloader = copy.copy(self.downloader)
        downloader.output_folder = str(own)
        try:
            succeeded, _ = downloader(shard)
            return succeeded and publish(own, folder / PUBLISHED / f"{number:0{FILE_DIGITS}d}"), shard
        finally:
            shutil.rmtree(own, ignore_errors=True)


def publish(own: Path, public: Path) -> bool:
    """Give the folder `own` its public name, unless another attempt has been first; whether one of the two is true."""
    try:
        own.rename(public)
    except OSError:
        return public.is_dir()
    return True


@dataclass(frozen=True, slots=True)
class Spark:
    """The executors of the active session."""

    limits: Download

    def each(self, downloader: img2dataset.downloader.Downloader, reader: Reader) -> None:
        """As bigdiff.prep.img2dataset_rows.Distributor says.

        Raises:
            RunError: when Spark gives up.
        """
        (Path(downloader.output_folder) / PUBLISHED).mkdir(exist_ok=True)
        shards = list(reader)
        try:  # all files as one job: img2dataset's batches wait for the slowest file of each
            pyspark_distributor(0, Attempt(downloader, self.limits), shards, len(shards), max_shard_retry=1)
        except _GONE as error:
            raise RunError(f"Spark gave up: {reason(str(error))}") from error


@contextmanager
def on_spark(limits: Download) -> Iterator[Spark]:
    """A session of Spark's, which img2dataset's distributor finds, and its JVM.

    Raises:
        RunError: when it cannot be had.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the first python3 of PATH
    builder = SparkSession.builder.appName("bigdiff download")
    if limits.spark_master is not None:
        builder = builder.master(limits.spark_master)
    for key, value in settings(limits.spark_master or "", dict(os.environ)).items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, *_GONE) as error:
        told = reason(str(error))
        raise RunError(f"Spark did not start, see above (its version must fit Java's): {told}") from error
    jvm: subprocess.Popen[bytes] = session.sparkContext._gateway.proc  # pyspark keeps it for its users
    try:
        yield Spark(limits)
    finally:
        with suppress(*_GONE):  # the reason has been said
            session.stop()
        assert jvm.stdin is not None
        jvm.stdin.close()  # upon which it ends
        with suppress(subprocess.TimeoutExpired):  # then it is killed with this process's group
            jvm.wait(_JVM_SECONDS)


def settings(master: str, environment: dict[str, str]) -> dict[str, str]:
    """What of Spark's configuration is not left to its user."""
    given = {f"spark.executorEnv.{name}": environment[name] for name in _GIVEN if name in environment}
    needed = {
        "spark.speculation": "false",  # a second attempt beside a slow one would ask its servers for everything twice
        "spark.python.use.daemon": "true",  # without it an Attempt would end with a thread of the JVM
        "spark.ui.showConsoleProgress": "false",  # the log is read by people
    }
    # Nobody outside has anything to ask of a Spark that is this machine's alone.
    private = {"spark.ui.enabled": "false", "spark.driver.bindAddress": _LOOPBACK, "spark.driver.host": _LOOPBACK}
    return given | needed | (private if master.startswith("local") else {})


def reason(message: str) -> str:
    """The sentence in a message of Spark's, which holds stack traces of Java and of Python."""
    lines = [line.strip(" :") for line in message.partition("\n\tat ")[0].splitlines()]
    told = [line for line in lines if line and line != "Driver stacktrace"]
    return told[-1] if told else "no reason was given"
