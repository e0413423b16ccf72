"""A stage on clusters of several sizes before anything runs: time, efficiency, memory, traffic, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bigdiff.config.cluster import Cluster
from bigdiff.config.engine_rules import AUTO, in_bf16
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
from bigdiff.plan.scaling import BANDWIDTH, FRACTION, KERNEL, Machine, Pace, Step, fitted, floor, predict, update_bytes
from bigdiff.plan.storage import Pictures, Storage, storage
from bigdiff.runtime.devices import Device, device
from bigdiff.train import recomputing
from bigdiff.train.memory import Part, Ranks, Weights, largest_micro, state, transient
from bigdiff.train.recomputing import Counted
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
class Image:
    """What an image takes of the network, and of what is recomputed of it."""

    flops: Flops
    activations: Activations
    told: str = ""  # what engine.gradient_checkpointing=auto chooses


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A stage on so many nodes."""

    nodes: int
    stage: Stage  # with its micro-batch fitted to the ranks
    image: Image
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
    half: bool  # bf16 over fp32 masters
    rows: tuple[Row, ...]
    storage: Storage
    assumed: tuple[str, ...]  # sentences

    @property
    def flops(self) -> Flops:
        """Of an image, on the first number of nodes."""
        return self.rows[0].image.flops

    @property
    def activations(self) -> Activations:
        """Of an image, on the first number of nodes."""
        return self.rows[0].image.activations


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
    plain = Image(flops=flops.per_image(stage), activations=activations.per_image(stage, half))
    auto = recomputing.counted(stage, half) if stage.engine.gradient_checkpointing == AUTO else None
    memory = 1e9 * stage.engine.memory_gb or (given.device.memory if given.device else 0.0)
    rows: list[Row] = []
    assumed: list[str] = []
    for number in nodes:
        on = Ranks(count=number * cluster.processes_per_node, gpu=gpu, half=half, memory=memory)
        one = fitted(stage, on.count)
        image = _chosen(one, on, plain, auto) if auto else plain
        machine, told = _machine(one, cluster, given, image, len(weights.sizes))
        step = predict(one, weights, on.count, machine)
        row = Row(
            nodes=number,
            stage=one,
            image=image,
            step=step,
            efficiency=step.efficiency(rows[0].step if rows else step),
            parts=(
                *state(one, weights, on.count, half),
                *transient(one, weights, on.count, half, gpu, image.activations),
            ),
            largest=_largest(one, weights, on, image, auto),
            volumes=volumes(one, weights.sizes, on.count, gpu, half),
            bucket=buckets.best(one, weights, on.count, machine),
            cost=cost(one, step, given.price, given.device.node_watts if given.device else 0.0),
        )
        rows.append(row)
        assumed += [*told, *([f"{number:,} nodes: {image.told}"] if image.told else [])]
    return Forecast(
        stage=stage,
        weights=weights,
        half=half,
        rows=tuple(rows),
        storage=storage(stage, sum(found.sizes), given.pictures),
        assumed=(*dict.fromkeys(assumed), *found.notes),
    )


def _chosen(stage: Stage, on: Ranks, plain: Image, auto: Counted) -> Image:
    """What an image takes with the units that the trainer will recompute of `stage` on these ranks."""
    chosen = recomputing.choose(stage, on, auto)
    told = chosen.line(plain.flops.needed)
    if not chosen.names:
        return replace(plain, told=told)
    followed = activations.per_image(recomputing.switched(stage, chosen.how), on.half)
    return Image(
        flops=replace(plain.flops, recomputed=chosen.flops),
        # of many images: of one by itself a weight's gradient may be the most that there is at once
        activations=replace(followed, peak=chosen.peak),
        told=told,
    )


def _largest(stage: Stage, weights: Weights, on: Ranks, image: Image, auto: Counted | None) -> int:
    """The largest micro-batch; with auto that of a network that recomputes all, as it will for it."""
    if not on.memory:
        return 0
    if auto is not None:
        return recomputing.largest(stage, on, auto)
    return largest_micro(stage, weights, on.count, on.memory, image.activations)


def _machine(
    stage: Stage, cluster: Cluster, given: Basis, image: Image, tensors: int
) -> tuple[Machine, tuple[str, ...]]:
    counted, kept = image.flops, image.activations
    between = given.network * 1e9 / 8 * EFFICIENCY
    share = (counted.backward + counted.recomputed) / counted.total
    wire = f"modelled: {given.network:g} Gb/s between nodes for each rank, of which a ring reaches {EFFICIENCY:.0%}"
    if given.probe is not None:
        return _measured(stage, cluster, given.probe, counted, Pace(image=0.0, backward=share), between, wire)
    row = given.device
    assert row is not None, "a basis has one of them"
    pace = Pace(
        image=counted.total / (row.peak * FRACTION),
        floor=floor(stage, kept.kernels, tensors),
        element=update_bytes(stage, half=True) / (row.bandwidth * BANDWIDTH),
        backward=share,
    )
    fabric = Fabric(per_node=cluster.processes_per_node, inside=row.link * EFFICIENCY, between=between)
    told = (
        f"modelled: passes reach {FRACTION:.0%} of {row.name}'s {row.peak / 1e12:g} TFLOP/s ({row.source})",
        f"modelled: a pass takes at least {pace.floor * 1e3:.1f} ms of the host: {kept.kernels:,} operators x "
        f"{KERNEL * 1e6:g} us, and what {stage.engine.sharding} does with {tensors:,} gradients",
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
