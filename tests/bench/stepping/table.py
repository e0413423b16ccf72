"""The result of tests/bench/step.py for people."""

import statistics
from typing import Any

from stepping.kernels import CLASSES

COLUMNS = ("images/s", "least", "most", "x script", "MFU", "of measured", "peak GB", "waits", "start s")


def lines(result: dict[str, Any], script: str) -> list[str]:
    """A table of rates and one of kernel times for each resolution and micro-batch."""
    told = [result["title"], *result["notes"]]
    for run in result["runs"]:
        rows: dict[str, Any] = run["rows"]
        told += [
            "",
            f"{run['pixels']} px, {run['micro']} images a step, {run['flops'] / 1e9:.2f} GFLOP an image, "
            f"{run['weights']:,} weights" + (f": {run['ended']}" if run["ended"] else ""),
        ]
        if run["ended"]:
            continue
        base = statistics.median(rows[script]["rates"]) if script in rows else None
        told.append(f"{'':19}" + "".join(f"{column:>12}" for column in COLUMNS))
        for name, row in rows.items():
            cells = _cells(row, base, run["flops"], result["peak"], result["ceiling"])
            told.append(f"{name:19}" + "".join(f"{cell:>12}" for cell in cells))
        told += ["", f"{'ms a step':19}" + "".join(f"{kind:>12}" for kind in CLASSES)]
        for name, row in rows.items():
            told.append(f"{name:19}" + "".join(f"{1e3 * row['kernels'][kind]:12.2f}" for kind in CLASSES))
        said = {name: [*row["said"], row["agrees"], row["engine"]] for name, row in rows.items()}
        told += [f"{name}: {line}" for name, told_ in said.items() for line in told_ if line]
    return told


def lacks(result: dict[str, Any]) -> list[str]:
    """What a result has not, or what is wrong in it, whatever its rates are."""
    found = []
    for run in result["runs"]:
        place = f"{run['pixels']} px, {run['micro']}"
        found += [f"{place}: {run['ended']}"] if run["ended"] else []
        for name, row in run["rows"].items():
            wrong = {
                row["agrees"]: bool(row["agrees"]),
                row["engine"]: bool(row["engine"]),
                "no rate": not row["rates"] or min(row["rates"]) <= 0,
                "no time in some class of kernels": not all(row["kernels"].get(kind, 0) > 0 for kind in CLASSES[:-1]),
                "no single kernels": not row["largest"],
            }
            found += [f"{place}, {name}: {what}" for what, is_so in wrong.items() if is_so]
    return found


def _cells(row: dict[str, Any], base: float | None, flops: int, peak: float | None, ceiling: float) -> list[str]:
    rate = statistics.median(row["rates"])
    return [
        f"{rate:.1f}",
        f"{min(row['rates']):.1f}",
        f"{max(row['rates']):.1f}",
        f"{rate / base:.2f}" if base else "",
        f"{rate * flops / peak:.1%}" if peak else "",
        f"{rate * flops / ceiling:.1%}",
        f"{row['peak'] / 1e9:.1f}" if row["peak"] else "",
        "" if row["waits"] is None else str(row["waits"]),
        f"{row['start']:.1f}",
    ]
