"""A stage on clusters of several sizes before anything runs: time, efficiency, memory, traffic, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bigdiff.config.cluster import Cluster
from bigdiff.config.engine_rules import in_bf16
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.models import activations, flops
from bigdiff.models.activations import Activations
from bigdiff.models.flops import Flops
from bigdiff.models.network import network
from bigdiff.plan import buckets, probe
from bigdiff.plan.buckets import Bucket
from bigdiff.plan.cost import Cost, cost
from bigdiff.plan.links import EFFICIENCY, Fabric
from bigdiff.plan.probe import Probe
from bigdiff.plan.scaling import BANDWIDTH, FRACTION, KERNEL, Machine, Pace, Step, fitted, predict, update_bytes
from bigdiff.plan.storage import Pictures, Storage, storage
from bigdiff.runtime.devices import Device, device
from bigdiff.train.memory import Part, Weights, largest_micro, state, transient
from bigdiff.train.volumes import Volume, volumes

_GIVEN: Final = ("cluster", "nodes", "network", "price", "samples", "picture_kb")
NETWORK: Final = 400.0  # Gb/s of each device's card, where nothing else is given


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What a forecast rests on: a row of the table, a measurement, or both."""

    device: Device | None = None
    probe: Probe | None = None
    network: float = NETWORK  # Gb/s between nodes for each rank
    price: float = 0.0  # of a device and hour
    pictures: Pictures = field(default_factory=Pictures)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A stage on so many nodes."""

    nodes: int
    stage: Stage  # with its micro-batch fitted to the ranks
    step: Step
    efficiency: float  # relative to the first row
    parts: tuple[Part, ...]
    largest: int  # samples of the largest micro-batch; 0: the device is unknown
    volumes: tuple[Volume, ...]
    bucket: Bucket | None  # that leaves the least exposed; None where none has an effect
    cost: Cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A stage on several numbers of nodes."""

    stage: Stage
    weights: Weights
    flops: Flops
    activations: Activations
    machine: Machine
    rows: tuple[Row, ...]
    storage: Storage
    assumed: tuple[str, ...]  # sentences


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the options of launch/plan.py ask for."""

    basis: Basis
    nodes: tuple[int, ...]  # none: the cluster's own number


def asked(options: Mapping[str, Any]) -> Asked | None:
    """What `options` (of launch/plan.py, by name) ask to compute; None for nothing.

    Raises:
        UsageError: for options without effect, or a number out of range.
    """
    given = {name: options[name] for name in _GIVEN if options[name] is not None}
    if options["device"] is None and options["probe"] is None:
        if given:
            name = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{name} has no effect without --device NAME or --probe FILE: add one")
        return None
    if options["fidelity"]:
        raise UsageError("--probe has no effect with --fidelity: leave one of them out")
    if "picture_kb" in given and "samples" not in given:
        raise UsageError("--picture-kb has no effect without --samples N: add it")
    for name in ("network", "price", "samples", "picture_kb"):
        if name in given and given[name] <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {given[name]:g} must be positive")
    basis = Basis(
        device=device(options["device"]) if options["device"] else None,
        probe=probe.read(options["probe"]) if options["probe"] else None,
        network=given.get("network", NETWORK),
        price=given.get("price", 0.0),
        pictures=Pictures(samples=given.get("samples", 0), kilobytes=given.get("picture_kb", 0.0)),
    )
    return Asked(basis=basis, nodes=_numbers(given.get("nodes", "")))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(one) for one in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if any(one <= 0 for one in found):
        raise UsageError(f"--nodes {text}: use positive numbers with commas between, such as 1,8,64")
    return found


def forecast(stage: Stage, cluster: Cluster, nodes: Sequence[int], given: Basis) -> Forecast:
    """`stage` on each number of `nodes` of `cluster`.

    Raises:
        UsageError: for a stage that cannot be planned, or a batch that does not divide.
    """
    gpu = given.probe.device != "cpu" if given.probe else True
    half = in_bf16(stage, gpu)
    found = network(stage)
    weights = Weights(sizes=found.sizes, frozen=found.frozen)
    counted, kept = flops.per_image(stage), activations.per_image(stage, half)
    machine, assumed = _machine(stage, cluster, given, counted, kept)
    rows: list[Row] = []
    for number in nodes:
        ranks = number * cluster.processes_per_node
        one = fitted(stage, ranks)
        step = predict(one, weights, ranks, machine)
        parts = (*state(one, weights, ranks, half), *transient(one, weights, ranks, half, gpu, kept))
        row = Row(
            nodes=number,
            stage=one,
            step=step,
            efficiency=step.efficiency(rows[0].step if rows else step),
            parts=parts,
            largest=largest_micro(one, weights, ranks, given.device.memory, kept) if given.device else 0,
            volumes=volumes(one, weights.sizes, ranks, gpu, half),
            bucket=buckets.best(one, weights, ranks, machine),
            cost=cost(one, step, given.price, given.device.node_watts if given.device else 0.0),
        )
        rows.append(row)
    return Forecast(
        stage=stage,
        weights=weights,
        flops=counted,
        activations=kept,
        machine=machine,
        rows=tuple(rows),
        storage=storage(stage, sum(found.sizes), given.pictures),
        assumed=(*assumed, *found.notes),
    )


def _machine(
    stage: Stage, cluster: Cluster, given: Basis, counted: Flops, kept: Activations
) -> tuple[Machine, tuple[str, ...]]:
    between = given.network * 1e9 / 8 * EFFICIENCY
    share = (counted.backward + counted.recomputed) / counted.total
    wire = f"modelled: {given.network:g} Gb/s between nodes for each rank, of which a ring reaches {EFFICIENCY:.0%}"
    if given.probe is not None:
        return _measured(stage, cluster, given.probe, counted, Pace(image=0.0, backward=share), between, wire)
    row = given.device
    assert row is not None, "a basis has one of them"
    pace = Pace(
        image=counted.total / (row.peak * FRACTION),
        floor=kept.kernels * KERNEL,
        element=update_bytes(stage, half=True) / (row.bandwidth * BANDWIDTH),
        backward=share,
    )
    fabric = Fabric(per_node=cluster.processes_per_node, inside=row.link * EFFICIENCY, between=between)
    told = (
        f"modelled: passes reach {FRACTION:.0%} of {row.name}'s {row.peak / 1e12:g} TFLOP/s ({row.source})",
        f"modelled: a pass takes at least {kept.kernels:,} operators x {KERNEL * 1e6:g} us of the host",
        f"modelled: AdamW, casts and averages move {update_bytes(stage, half=True)} bytes an element "
        f"at {BANDWIDTH:.0%} of {row.bandwidth / 1e12:g} TB/s",
        f"modelled: {row.link / 1e9:g} GB/s inside a node, of which a ring reaches {EFFICIENCY:.0%}",
        wire,
        "left out: stragglers, reading, checkpoints, previews, restarts",
    )
    return Machine(pace=pace, fabric=fabric), told


def _measured(  # noqa: PLR0913 (one call)
    stage: Stage, cluster: Cluster, measured: Probe, counted: Flops, pace: Pace, between: float, wire: str
) -> tuple[Machine, tuple[str, ...]]:
    gpu, scale = measured.device != "cpu", counted.total / measured.flops
    if in_bf16(stage, gpu) != measured.half:
        raise UsageError(f"the probe's precision is not that of stage {stage.name}: measure it with launch/probe.py")
    pace = replace(
        pace,
        image=measured.image * scale,
        fixed=measured.fixed,
        element=measured.element,
        step=measured.step,
        overlap=gpu,
    )
    inside = measured.rate or between
    fabric = Fabric(per_node=cluster.processes_per_node, inside=inside, between=between, latency=measured.latency)
    scaled = "" if scale == 1 else f", times {scale:.3g} for this stage's FLOPs"
    told = [
        f"measured: {measured.image * 1e3:.4g} ms an image and {measured.fixed * 1e3:.4g} ms a pass{scaled} "
        f"on {measured.device} ({measured.ranks} ranks at once, stage {measured.stage}, {measured.date})",
        f"measured: {measured.element * 1e9:.4g} ns an element of the update, "
        f"{measured.step * 1e3:.4g} ms a step beside",
    ]
    if measured.rate:
        told.append(f"measured: {measured.rate / 1e9:.4g} GB/s and {measured.latency * 1e6:.4g} us inside a node")
    if not gpu:
        told.append("modelled: no collective runs beside a pass, as gloo's do not")
    if measured.ranks != cluster.processes_per_node:
        told.append(f"doubtful: measured with {measured.ranks} ranks, planned for {cluster.processes_per_node} a node")
    return Machine(pace=pace, fabric=fabric, gpu=gpu, half=measured.half), (
        *told,
        wire,
        "left out: stragglers, reading, checkpoints, previews, restarts",
    )
