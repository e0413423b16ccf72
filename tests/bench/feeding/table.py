"""The result of tests/bench/throughput.py for people."""

import math
import statistics
from typing import Any

COLUMNS = (
    "pictures/s",
    "of limit",
    "goal 50 %",
    "alone",
    "of limit",
    "cudnn tries",
    "decoding",
    "a core",
    "threads",
    "waits",
)
NEAR = 0.9  # of the slower one alone: the path adds next to nothing to it


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each work and precision, then what holds each back."""
    told = [result["title"], *result["notes"], "", f"{'':24}" + "".join(f"{name:>13}" for name in COLUMNS)]
    for row in result["rows"]:
        told.append(f"{_name(row):24}" + "".join(f"{cell:>13}" for cell in _cells(row, result["ceiling"])))
    told += ["", "limit: a picture's FLOPs at the rate of the largest bf16 product that was measured"]
    for row in result["rows"]:
        least = limit(row, result["ceiling"])
        told.append(
            f"{row['work']}: {row['flops'] / 1e12:.3f} TFLOP a picture, {least:,.0f} pictures/s; beside them "
            f"{row['bytes'] / 1e9:.2f} GB in half precision, if nothing is fused"
        )
    told += [f"{_name(row)}: {holds(row, result['ceiling'], result['cores'])}" for row in result["rows"]]
    return [one for number, one in enumerate(told) if one == "" or one not in told[:number]]


def limit(row: dict[str, Any], ceiling: float) -> float:
    """Pictures/s if nothing but the products took time."""
    return ceiling / row["flops"]


def holds(row: dict[str, Any], ceiling: float, cores: int) -> str:
    """What keeps the path from being faster, and what half of the limit would take."""
    if row["ended"]:
        return str(row["ended"])
    path, half = statistics.median(row["path"]), limit(row, ceiling) / 2
    decoders = math.ceil(half / row["decode_one"])
    needed = f"half of the limit ({half:,.0f}) takes {decoders} of these cores"
    if decoders > cores:
        needed += f", of which there are {cores}: too few to decode for it"
    if row["alone"] < half:
        needed = f"the network alone stays below half of the limit ({half:,.0f}); {needed}"
    if path >= half:
        return f"reaches half of the limit; {needed}"
    slower = min(row["alone"], row["decode"])
    if path < NEAR * slower:
        return f"the path: {path / slower:.0%} of the slower of network and decoding; {needed}"
    if row["decode"] < row["alone"]:
        takes = math.ceil(row["alone"] / row["decode_one"])
        return f"decoding: the network alone takes {takes} cores, {cores} are there; {needed}"
    return f"the network; {needed}"


def lacks(result: dict[str, Any]) -> list[str]:
    """What a result has not, whatever its rates are."""
    found = [] if result["rows"] else ["no row"]
    for row in result["rows"]:
        rates = {key: row[key] for key in ("alone", "decode", "decode_one", "flops", "bytes")}
        missing = [key for key, value in rates.items() if not value > 0]
        missing += [] if row["path"] and min(row["path"]) > 0 else ["path"]
        found += [f"{_name(row)}: {row['ended']}"] if row["ended"] else [f"{_name(row)}: no {key}" for key in missing]
    return found


def _name(row: dict[str, Any]) -> str:
    return f"{row['work']}, {row['precision']}"


def _cells(row: dict[str, Any], ceiling: float) -> list[str]:
    if row["ended"]:
        return ["-"] * len(COLUMNS)
    path, most = statistics.median(row["path"]), limit(row, ceiling)
    return [
        f"{path:,.1f}",
        f"{path / most:.1%}",
        "yes" if path >= most / 2 else "no",
        f"{row['alone']:,.1f}",
        f"{row['alone'] / most:.1%}",
        f"{row['tried']:,.1f}" if row["tried"] else "-",
        f"{row['decode']:,.1f}",
        f"{row['decode_one']:,.1f}",
        str(row["threads"]),
        "-" if row["waits"] is None else str(row["waits"]),
    ]
