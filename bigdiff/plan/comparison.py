"""What the planner predicts for a run beside what the run measured: `python -m bigdiff.plan.comparison RUN`.

The prediction is made now, from the run's resolved config, its devices and this version of the planner; it has not seen
the run. Bytes and FLOPs are counted for every device. Times need a rate: of the table of devices, or of a probe;
without one they are not predicted. Measured are medians over the last quarter of the newest start's lines.
"""

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

from bigdiff.checkpoint import layout
from bigdiff.config.cluster import Cluster
from bigdiff.config.engine_rules import AUTO, in_bf16
from bigdiff.config.errors import UsageError, door
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.config.schema import Stage
from bigdiff.metrics import readings
from bigdiff.plan import forecast, probe, table
from bigdiff.plan.counted import Counted, counted, of
from bigdiff.plan.forecast import Forecast
from bigdiff.plan.machine import NETWORK, Basis
from bigdiff.plan.room import used
from bigdiff.runtime import devices
from bigdiff.runtime.files import write_json
from bigdiff.runtime.records import read
from bigdiff.train import preflight, usage
from bigdiff.train.memory import Part
from bigdiff.train.recomputing import switched
from bigdiff.train.usage import Start

RECORD: Final = "forecast.json"  # in the run's folder
PROBE: Final = "probe.json"  # beside the run's folder: what launch/probe.py measured of the machine, if it is there
# a CPU's allocator does not tell what it had at most, so that there it is all of the process
_MEMORY: Final = ("memory of a rank, GB", "memory of a rank, GB; measured with its libraries")
_PEAK: Final = "memory/peak_gb"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One quantity, predicted and measured."""

    what: str  # with its unit
    predicted: float
    measured: float | None  # None: nothing measures it

    @property
    def ratio(self) -> float | None:
        """Measured over predicted."""
        return self.measured / self.predicted if self.measured is not None and self.predicted else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A run's newest start beside its forecast; forecast.json."""

    stage: str
    device: str  # as its driver calls it
    devices: int
    nodes: int
    lines: int  # of metrics.jsonl behind each median
    pairs: tuple[Pair, ...]
    parts: tuple[Part, ...]  # of the memory that is predicted for a rank
    assumed: tuple[str, ...]  # sentences
    absent: tuple[str, ...]  # what is not compared, and why


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the run left of its newest start."""

    folder: Path
    stage: Stage
    starts: tuple[Start, ...]  # all up to that one
    nodes: int
    lines: tuple[dict[str, Any], ...]  # the last quarter of its own

    @property
    def start(self) -> Start:
        """The newest with lines."""
        return self.starts[-1]

    def median(self, tag: str) -> float:
        """Of its lines."""
        return float(statistics.median(one[tag] for one in self.lines))


def compare(run: Path, measurement: Path | None, network: float) -> Comparison:
    """Hold a forecast against the run in the folder `run`: times by a file of launch/probe.py or the table of devices.

    Without `measurement` a probe.json beside the folder is taken, where it is of the run's device and that is not in
    the table. `network` is in Gb/s between nodes for each rank.

    Raises:
        UsageError: for a folder without a run or its lines, or a `measurement` that does not fit it.
    """
    file = run / layout.CONFIG
    if not file.is_file():
        raise UsageError(f"{run} has no {layout.CONFIG}: give the folder of a run")
    stage = load_stage(str(file))
    starts, lines = _measured(run)
    start = starts[-1]
    if stage.engine.gradient_checkpointing == AUTO:
        stage = switched(stage, start.recomputed)
    seen = _Seen(folder=run, stage=stage, starts=starts, nodes=_nodes(run, start), lines=tuple(lines))
    planned, lacks = None, ""
    try:
        basis, lacks = _basis(seen, measurement, network)
        if basis is not None and stage.model.autoencoder is None:
            planned = forecast.forecast(stage, _cluster(seen.nodes, start), [seen.nodes], basis)
    except UsageError as error:
        if measurement is not None:
            raise
        lacks = f"times and cost: {error}"
    gpu = start.device != "cpu"
    known = of(planned) if planned else counted(stage, start.devices, gpu, in_bf16(stage, gpu))
    pairs = (*(_timed(seen, planned) if planned else ()), *_bytes(seen, known))
    return Comparison(
        stage=stage.name,
        device=start.device,
        devices=start.devices,
        nodes=seen.nodes,
        lines=len(lines),
        pairs=pairs,
        parts=known.parts,
        assumed=known.notes,
        absent=tuple(filter(None, (known.lacks or lacks,))),
    )


def _basis(seen: _Seen, measurement: Path | None, network: float) -> tuple[Basis | None, str]:
    """What times rest on; or None, and why there is nothing."""
    start, stage = seen.start, seen.stage
    row, beside = devices.called(start.device), seen.folder.parent / PROBE
    found = probe.read(measurement) if measurement else None
    if found is None and row is None and beside.is_file():
        found = probe.read(beside)
        if found.device != start.device:
            return None, f"times and cost: {beside} is of {found.device}, and the run was on {start.device}"
    if row is None and found is None:
        return None, (
            f"times and cost: bigdiff/runtime/devices.py has no peak of {start.device}, and none is guessed; "
            f"`launch/probe.py --stage {stage.name} --output {beside}` measures this machine"
        )
    price = stage.log.price_per_device_hour
    return Basis(device=row, probe=found, network=network, price=price), ""


def _timed(seen: _Seen, planned: Forecast) -> list[Pair]:
    """Speed, and what all steps take."""
    stage, start, row = seen.stage, seen.start, planned.rows[0]
    rate = seen.median("speed/images_per_second")
    pairs = [
        Pair(what="images/s", predicted=row.step.images_per_second, measured=rate),
        Pair(what="step, ms", predicted=1e3 * row.step.seconds, measured=1e3 * stage.batch.total / rate),
    ]
    if seen.lines[-1].get("step") == stage.steps:  # before, the run has taken a part of it
        taken = [replace(start, seconds=seen.lines[-1]["time"] - start.time), *seen.starts[:-1]]
        hours = sum(one.devices * one.seconds for one in taken) / 3600
        pairs.append(Pair(what="device-hours", predicted=row.cost.device_hours, measured=hours))
        if row.cost.money:
            price = stage.log.price_per_device_hour
            pairs.append(Pair(what="money", predicted=row.cost.money, measured=hours * price))
    return pairs


def _bytes(seen: _Seen, known: Counted) -> list[Pair]:
    """Memory, disks and traffic, which need no rate; steps and FLOPs."""
    newest = layout.latest(seen.folder)
    stored = sum(file.stat().st_size for file in newest.iterdir()) if newest else 0
    pairs = [
        Pair(what="steps", predicted=seen.stage.steps, measured=seen.lines[-1].get("step")),
        Pair(what="GFLOP an image", predicted=seen.start.flops / 1e9, measured=None),
        Pair(what="a rank sends in a step, MB", predicted=known.sent / 1e6, measured=None),
        Pair(what=_MEMORY[seen.start.device == "cpu"], predicted=known.peak / 1e9, measured=seen.median(_PEAK)),
        Pair(what="a checkpoint, MB", predicted=known.checkpoint / 1e6, measured=stored / 1e6 if newest else None),
        Pair(what="all checkpoints, MB at most", predicted=known.disk / 1e6, measured=used(seen.folder) / 1e6),
    ]
    return [one for one in pairs if one.predicted]  # what is not counted of this stage is 0


def recorded(run: Path, measurement: Path | None = None, network: float = NETWORK) -> Sequence[RenderableType]:
    """Compare, write forecast.json into the run's folder, and tell a person.

    Raises:
        UsageError: as `compare`.
    """
    found = compare(run, measurement, network)
    write_json(run / RECORD, asdict(found))
    return report(found)


def text(parts: Sequence[RenderableType]) -> str:
    """As lines of a log, of a fixed width."""
    out = Console(width=table.PIPED, highlight=False, file=io.StringIO())
    with out.capture() as captured:
        for part in parts:
            out.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def report(found: Comparison) -> Sequence[RenderableType]:
    """For a person."""
    out = table.blank(table.console())
    for number, column in enumerate(("", "predicted", "measured", "measured / predicted")):
        out.add_column(column, justify="left" if number == 0 else "right")
    for one in found.pairs:
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else "-"
        out.add_row(one.what, _short(one.predicted), _short(one.measured), ratio)
    node, line = ("node", "nodes")[found.nodes > 1], ("line", "lines")[found.lines > 1]
    head = f"{found.stage} on {found.devices} x {found.device}, {found.nodes} {node}; medians of {found.lines} {line}"
    said = (*(f"not compared: {one}" for one in found.absent), *found.assumed)
    return [Text(head), out, *(Text(one, style="dim") for one in said)]


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _measured(run: Path) -> tuple[tuple[Start, ...], list[dict[str, Any]]]:
    """The starts up to the newest that has lines, and the last quarter of them."""
    starts, lines = (
        read(run / usage.RECORD, lambda one: Start(**one), "starts"),
        [*readings.lines(run / layout.METRICS)],
    )
    until = float("inf")
    for number, start in reversed(list(enumerate(starts, 1))):
        own = [one for one in lines if start.time <= one["time"] < until]
        if own:
            return tuple(starts[:number]), own[3 * len(own) // 4 :]
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
    parser.add_argument("--network", type=float, default=NETWORK, help="Gb/s between nodes for each rank")
    arguments = parser.parse_args()
    if not arguments.network > 0:
        raise UsageError(f"--network {arguments.network:g} must be positive")
    out = table.console()
    for part in recorded(arguments.run, arguments.probe, arguments.network):
        table.show(out, part)


if __name__ == "__main__":
    door(main)
