"""Whether a download can run on Spark, said before anything is fetched."""

import importlib.util
import os
import shutil
from pathlib import Path

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Download
from bigdiff.runtime.workers import Spread, Workers


def ready(limits: Download, spread: Spread) -> None:
    """Nothing, when `limits` ask for no Spark or it can be had.

    Raises:
        UsageError: naming what is missing, or what it does not go together with.
    """
    if limits.distributor != "pyspark":
        return
    asked = "download.distributor=pyspark"
    if not isinstance(spread, Workers):
        raise UsageError(
            f"{asked} and --executor slurm are two schedulers for one download: leave out --executor slurm, or set "
            "download.distributor=multiprocessing"
        )
    if importlib.util.find_spec("pyspark") is None:
        raise UsageError(f"{asked} needs pyspark, which is not installed: pip install 'bigdiff[spark]'")
    home = os.environ.get("JAVA_HOME")
    if shutil.which(Path(home) / "bin" / "java" if home else "java") is None:
        raise UsageError(
            f"{asked} needs a Java runtime, and {'JAVA_HOME=' + home if home else 'PATH'} has none: install one "
            "(Debian: apt-get install default-jre-headless), or set JAVA_HOME"
        )
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        raise UsageError(
            f"{asked} starts Spark itself: run this with python, not with spark-submit, whose options go into "
            "PYSPARK_SUBMIT_ARGS='... pyspark-shell'"
        )
