"""What the planner predicts for a run beside what the run measured: `python -m bigdiff.plan.comparison RUN`.

The prediction is made now, from the run's resolved config, its devices and this version of the planner; it has not seen
the run. Measured are medians over the last quarter of the lines that the newest start logged.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

from bigdiff.checkpoint import layout
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError, door
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.metrics import readings
from bigdiff.plan import forecast, probe, table
from bigdiff.plan.forecast import Basis
from bigdiff.plan.memory import peak
from bigdiff.runtime import devices
from bigdiff.runtime.files import write_json
from bigdiff.runtime.records import read
from bigdiff.train import preflight, usage
from bigdiff.train.usage import Start

RECORD: Final = "forecast.json"  # in the run's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One quantity, predicted and measured."""

    what: str  # with its unit
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A run's newest start beside its forecast; forecast.json."""

    stage: str
    device: str  # as its driver calls it
    devices: int
    nodes: int
    lines: int  # of metrics.jsonl behind each median
    pairs: tuple[Pair, ...]
    assumed: tuple[str, ...]  # sentences


def compare(run: Path, measurement: Path | None, network: float) -> Comparison:
    """Hold a forecast against the run in the folder `run`, by a file of launch/probe.py or by the table of devices.

    `network` is in Gb/s between nodes for each rank.

    Raises:
        UsageError: for a folder without a run or its lines, or a device that nothing is known of.
    """
    file = run / layout.CONFIG
    if not file.is_file():
        raise UsageError(f"{run} has no {layout.CONFIG}: give the folder of a run")
    stage = load_stage(str(file))
    start, lines = _measured(run)
    nodes = _nodes(run, start)
    basis = Basis(
        device=devices.called(start.device),
        probe=probe.read(measurement) if measurement else None,
        network=network,
    )
    if basis.device is None and basis.probe is None:
        raise UsageError(
            f"{run} ran on {start.device}, which bigdiff/runtime/devices.py does not have: measure it with "
            f"launch/probe.py and add --probe FILE"
        )
    found = forecast.forecast(stage, _cluster(nodes, start), [nodes], basis)
    (row,) = found.rows
    rate = statistics.median(one["speed/images_per_second"] for one in lines)
    pairs = [
        Pair(what="images/s", predicted=row.step.images_per_second, measured=rate),
        Pair(what="step, ms", predicted=1e3 * row.step.seconds, measured=1e3 * stage.batch.total / rate),
    ]
    if start.device != "cpu":  # there it is all of the process, libraries too
        held = statistics.median(one["memory/peak_gb"] for one in lines)
        pairs.append(Pair(what="memory of a rank, GB", predicted=peak(row.parts) / 1e9, measured=held))
    return Comparison(
        stage=stage.name,
        device=start.device,
        devices=start.devices,
        nodes=nodes,
        lines=len(lines),
        pairs=tuple(pairs),
        assumed=found.assumed,
    )


def report(found: Comparison) -> Sequence[RenderableType]:
    """For a person."""
    out = table.blank(table.console())
    for number, column in enumerate(("", "predicted", "measured", "measured / predicted")):
        out.add_column(column, justify="left" if number == 0 else "right")
    for one in found.pairs:
        out.add_row(one.what, f"{one.predicted:,.1f}", f"{one.measured:,.1f}", f"{one.ratio:.2f}")
    node, line = ("node", "nodes")[found.nodes > 1], ("line", "lines")[found.lines > 1]
    head = f"{found.stage} on {found.devices} x {found.device}, {found.nodes} {node}; medians of {found.lines} {line}"
    return [Text(head), out, *(Text(one, style="dim") for one in found.assumed)]


def _measured(run: Path) -> tuple[Start, list[dict[str, Any]]]:
    """The newest start that has lines, and the last quarter of them."""
    starts, lines = read(run / usage.RECORD, lambda one: Start(**one), "starts"), readings.every(run / layout.METRICS)
    until = float("inf")
    for start in reversed(starts):
        own = [one for one in lines if start.time <= one["time"] < until]
        if own:
            return start, own[3 * len(own) // 4 :]
        until = start.time
    raise UsageError(f"{run} has no lines in {layout.METRICS} of a start in {usage.RECORD}: train it first")


def _nodes(run: Path, start: Start) -> int:
    """As the newest preflight counted them, where it was of as many devices; one otherwise."""
    file = run / "logs" / preflight.RECORD
    hosts = [one["host"] for one in json.loads(file.read_text())["readings"]] if file.is_file() else []
    return len(set(hosts)) if len(hosts) == start.devices else 1


def _cluster(nodes: int, start: Start) -> Cluster:
    each, on_gpu = start.devices // nodes, start.device != "cpu"
    return replace(load_cluster("local"), nodes=nodes, processes_per_node=each, gpus_per_node=each if on_gpu else 0)


def main() -> None:
    """Parse, compare, write, print."""
    parser = argparse.ArgumentParser(prog="python -m bigdiff.plan.comparison", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--probe", type=Path, help="a measurement of launch/probe.py instead of the table of devices")
    parser.add_argument("--network", type=float, default=forecast.NETWORK, help="Gb/s between nodes for each rank")
    arguments = parser.parse_args()
    if not arguments.network > 0:
        raise UsageError(f"--network {arguments.network:g} must be positive")
    found = compare(arguments.run, arguments.probe, arguments.network)
    write_json(arguments.run / RECORD, asdict(found))
    out = table.console()
    for part in report(found):
        table.show(out, part)


if __name__ == "__main__":
    door(main)
