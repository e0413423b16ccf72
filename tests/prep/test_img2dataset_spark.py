import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bigdiff.config.prep import Download
from bigdiff.prep.img2dataset_rows import _downloader

if find_spec("pyspark") is None or shutil.which("java") is None:
    pytest.skip("pyspark or java is missing", allow_module_level=True)

from bigdiff.prep.img2dataset_spark import Attempt, publish, reason, settings

# What Spark 3.5 says; "Driver stacktrace" stands where a task failed, not where a setting is wrong.
FAILED = """An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 1 times
Traceback (most recent call last):
  File "worker.py", line 1247, in main
    process()
bigdiff.config.errors.RunError: here has no /there: Spark's executors must see the driver's folders

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:572)
\tat java.base/java.lang.Thread.run(Thread.java:840)

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2898)
"""
LOST = """An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.
: org.apache.spark.SparkException: Job aborted: ExecutorLostFailure (executor 1 exited) Reason: gone
Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2898)
"""
SCRIPT = """
import sys
from pathlib import Path
from pyspark import SparkContext
from bigdiff.config.errors import RunError, door
from bigdiff.config.prep import Download
from bigdiff.prep.img2dataset_rows import _downloader
from bigdiff.prep.img2dataset_spark import on_spark
limits = Download(distributor="pyspark", spark_master=sys.argv[2])
def main():
    with on_spark(limits) as spark:
        downloader, elsewhere = _downloader(Path(sys.argv[1]), limits, 1), [(0, "/elsewhere/_tmp-1/0.feather")]
        try:
            spark.each(downloader, elsewhere)
        except RunError as error:
            sys.stderr.write(f"first: {error}\\n")
        SparkContext._gateway.proc.kill()
        SparkContext._gateway.proc.wait()
        spark.each(downloader, elsewhere)
door(main)
"""


def test_one_of_several_attempts_is_published(tmp_path: Path) -> None:
    public = tmp_path / "00003"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00003.tar").write_text(name)
    assert publish(tmp_path / "first", public)
    assert publish(tmp_path / "second", public)  # there is one
    assert (public / "00003.tar").read_text() == "first"
    assert (tmp_path / "second").exists()
    assert not publish(tmp_path / "second", tmp_path / "absent" / "00003")


def test_an_attempt_travels_to_a_process_that_imports_it() -> None:
    made = Attempt(_downloader(Path("/set/first"), Download(threads=3), 1), Download(threads=3))
    attempt = pickle.loads(pickle.dumps(made))
    assert attempt.limits == made.limits
    assert vars(attempt.downloader).keys() == vars(made.downloader).keys()
    assert attempt.downloader.thread_count == 3


def test_a_sentence_is_found_among_stack_traces() -> None:
    assert reason(FAILED).startswith("bigdiff.config.errors.RunError: here has no /there")
    assert reason(LOST).endswith("ExecutorLostFailure (executor 1 exited) Reason: gone")
    assert reason("\n: java.lang.UnsupportedOperationException: getSubject\n\tat x") == (
        "java.lang.UnsupportedOperationException: getSubject"
    )
    assert reason("") == "no reason was given"


def test_executors_get_the_mark_and_a_local_one_listens_to_nobody() -> None:
    environment = {"BIGDIFF_DOWNLOAD": "/set/00000", "OMP_NUM_THREADS": "1", "HOME": "/root"}
    cluster = settings("spark://host:7077", environment)
    assert cluster == {
        "spark.executorEnv.BIGDIFF_DOWNLOAD": "/set/00000",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.speculation": "false",
        "spark.python.use.daemon": "true",
        "spark.ui.showConsoleProgress": "false",
    }
    private = settings("local[2]", environment)
    assert private | cluster == private
    assert private["spark.driver.bindAddress"] == "127.0.0.1"
    assert private["spark.ui.enabled"] == "false"


@pytest.mark.parametrize(
    ("master", "why", "sentence"),
    [
        ("local[1]", "first: Spark gave up: bigdiff.config.errors.RunError: ", "failed: Spark gave up: "),
        ("nonsense", "Master must", "failed: Spark did not start, see above (its version must fit Java's): "),
    ],
)
def test_what_spark_does_not_get_done_is_one_sentence_at_the_end(
    master: str, why: str, sentence: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tmp_path), master]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(sentence), done.stderr
    assert why in done.stderr
    assert master == "nonsense" or f"has no {tmp_path}: Spark's executors must see the driver's folders" in done.stderr
