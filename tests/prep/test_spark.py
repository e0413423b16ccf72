import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Download
from bigdiff.prep.spark import ready
from bigdiff.runtime.workers import Workers

ON_SPARK = Download(distributor="pyspark")
HERE = Workers(1)


class Elsewhere:
    """Tasks on other machines, of which there is one."""

    machines = 1

    def each(self, function: Callable[[Any], Any], tasks: Sequence[Any], title: str) -> Iterator[Any]:
        raise AssertionError

    def on_devices(self) -> Any:
        raise AssertionError


@pytest.fixture(autouse=True)
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Java, no pyspark, no settings of Spark's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setitem(sys.modules, "pyspark", None)


def runtime(home: Path) -> Path:
    (home / "bin").mkdir(parents=True)
    shutil.copy("/bin/true", home / "bin" / "java")
    return home


def test_multiprocessing_needs_nothing_of_it() -> None:
    ready(Download(), HERE)
    ready(Download(), Elsewhere())


def test_an_array_and_spark_are_two_schedulers() -> None:
    with pytest.raises(UsageError, match="and --executor slurm are two schedulers"):
        ready(ON_SPARK, Elsewhere())


def test_what_is_missing_is_named_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"not installed: pip install 'bigdiff\[spark\]'"):
        ready(ON_SPARK, HERE)
    monkeypatch.setitem(sys.modules, "pyspark", pytest)  # any module that can be found
    with pytest.raises(UsageError, match="needs a Java runtime, and PATH has none"):
        ready(ON_SPARK, HERE)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    with pytest.raises(UsageError, match=r"and JAVA_HOME=.*/java has none: .* default-jre-headless"):
        ready(ON_SPARK, HERE)
    runtime(tmp_path / "java")
    ready(ON_SPARK, HERE)
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "java" / "bin"))
    ready(ON_SPARK, HERE)
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "4711")
    with pytest.raises(UsageError, match="run this with python, not with spark-submit"):
        ready(ON_SPARK, HERE)
