"""What the newest start found of its nodes before it trained."""

from statistics import median
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Cell, Markup, Right, note, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.headline import moment
from bigdiff.report.records import content

RECORD: Final = "preflight.json"  # in the run's folder of logs
_FIGURES: Final = (
    ("matmul", 1e12, "matrix product, TFLOP/s"),
    ("copy", 1e9, "memory, GB/s"),
    ("link", 1e9, "exchange with another process, GB/s"),
)


def written(run: Folder) -> Markup:
    """The section of the page: figures of all processes by their spread, and the faults.

    Raises:
        UsageError: when the record is damaged.
    """
    file = run.path / "logs" / RECORD
    found = content(file)
    if not found:
        return section(
            "Preflight", [note("There is no record: on SLURM alone nodes are looked at before a run trains.")]
        )
    try:
        return section("Preflight", _shown(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not a preflight's record ({error!r}): remove it") from error


def _shown(found: dict[str, Any]) -> list[Markup]:
    readings = found["readings"]
    hosts, devices = {one["host"] for one in readings}, sorted({str(one["device"]) for one in readings})
    said = (
        f"{len(readings):,} processes on {len(hosts):,} nodes ({', '.join(devices)}) at {moment(found['time'])}, in "
        f"{found['seconds']:.1f} s. "
    )
    faults: list[list[Cell]] = [
        [one["host"], one["why"], "slow" if one["slow"] else "broken"] for one in found["faults"]
    ]
    rows: list[list[Cell]] = []
    for name, unit, label in _FIGURES:
        values = sorted((float(one[name]) / unit, str(one["host"])) for one in readings if one[name])
        if values:
            middle = median(value for value, _ in values)
            rows.append(
                [label, *(Right(f"{value:.3g}") for value in (values[0][0], middle, values[-1][0])), values[0][1]]
            )
    if len(readings) > 1:
        said += (
            f"All-reduce {found['all_reduce'] / 1e9:.3g} GB/s, {'adds up' if found['sums'] else 'does NOT add up'}. "
        )
    head = ("of each process", "least", "median", "most", "least on")
    return [
        note(said + ("" if faults else "No node was at fault.")),
        table(("node", "what is wrong", "how"), faults, named=True),
        table(head, rows, named=True),
    ]
