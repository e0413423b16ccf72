"""A line for each part that is finished: what was fetched of it.

A part is a million rows, hours of work: who watches wants to see that a server turned bad before the report says so.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from tqdm import tqdm

from bigdiff.prep.fetch import is_retryable
from bigdiff.prep.layout import PASSES, ROWS, STATISTICS

_SHOWN: Final = 3  # causes of a line
_SUCCESS: Final = "success"


def fetched(part: Path) -> str:
    """What both passes of a finished part brought, and what most of the others were lost for."""
    first, second = (_statistics(part / name) for name in PASSES)
    statuses: Counter[str] = Counter()
    for one in first:
        statuses.update(one["status_dict"])
    if (part / PASSES[1] / ROWS).exists():  # what may pass was asked for again, and is counted there
        statuses = Counter({cause: n for cause, n in statuses.items() if cause == _SUCCESS or not is_retryable(cause)})
        for one in second:
            statuses.update(one["status_dict"])
    rows, pictures = pq.read_metadata(part / PASSES[0] / ROWS).num_rows, statuses.pop(_SUCCESS, 0)
    both = [*first, *second]
    seconds = max(one["end_time"] for one in both) - min(one["start_time"] for one in both) if both else 0.0
    taken = f" in {tqdm.format_interval(seconds)}"
    return f"part {part.name}: {pictures:,} of {rows:,} pictures fetched{taken}{causes('lost', statuses)}"


def _statistics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"*{STATISTICS}"))]


def causes(verb: str, counts: Counter[str]) -> str:
    """The end of a line: the most frequent of the causes that were counted; "" where there are none."""
    if not counts:
        return ""
    found = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    shown = ", ".join(f"{cause} {count:,}" for cause, count in found[:_SHOWN])
    more = len(found) - _SHOWN
    others = f" and {more} other {'causes' if more > 1 else 'cause'}" if more > 0 else ""
    return f"; {verb}: {shown}{others}"
