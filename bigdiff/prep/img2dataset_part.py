"""The process that downloads one part: `python -m bigdiff.prep.img2dataset_part ARGUMENTS.json`.

A part is fetched in two passes: all rows, then those again that failed for a passing reason.
"""

import importlib
import json
import sys
from pathlib import Path

from bigdiff.config.errors import door
from bigdiff.config.prep import Download
from bigdiff.prep.layout import DONE, PASSES, ROWS
from bigdiff.runtime.files import write_json
from bigdiff.runtime.workers import end_with_parent


def main() -> None:
    """Fetch the part that the arguments name: its folder, the limits, and the process to end with."""
    given = json.loads(Path(sys.argv[1]).read_text())
    end_with_parent(given["parent"])
    # Only now: img2dataset takes seconds to import, for which this process would outlive a parent that was killed.
    img2dataset_rows = importlib.import_module("bigdiff.prep.img2dataset_rows")
    limits = Download(**given["limits"])
    if limits.distributor == "pyspark":
        started = importlib.import_module("bigdiff.prep.img2dataset_spark").on_spark(limits)
    else:
        started = img2dataset_rows.forked(limits)
    folder = Path(given["folder"])
    first, second = (folder / name for name in PASSES)
    with started as distributor:
        img2dataset_rows.download_rows(distributor, first, limits, tries=1)
        if limits.retries:
            if not (second / ROWS).exists():
                img2dataset_rows.write_failed(first, second / ROWS, limits)
            img2dataset_rows.download_rows(distributor, second, limits, tries=limits.retries)
    write_json(folder / DONE, {})


if __name__ == "__main__":
    door(main)
