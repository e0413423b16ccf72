"""What a stage runs on, from a row of the table of devices or from a measurement, and what of it is assumed."""

from dataclasses import dataclass, field, replace
from typing import Final

from bigdiff.config.cluster import Cluster
from bigdiff.config.engine_rules import in_bf16
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage
from bigdiff.models.activations import Activations
from bigdiff.models.flops import Flops
from bigdiff.plan.links import EFFICIENCY, Fabric
from bigdiff.plan.probe import Probe
from bigdiff.plan.scaling import BANDWIDTH, FRACTION, KERNEL, Machine, Pace, floor, update_bytes
from bigdiff.plan.storage import Pictures
from bigdiff.runtime.devices import Device

NETWORK: Final = 400.0  # Gb/s of each device's card, where nothing else is given


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What a forecast rests on: a row of the table, a measurement, or both."""

    device: Device | None = None
    probe: Probe | None = None
    network: float = NETWORK  # Gb/s between nodes for each rank
    price: float = 0.0  # of a device and hour
    pictures: Pictures = field(default_factory=Pictures)

    @property
    def gpu(self) -> bool:
        """Whether the planned devices are GPUs."""
        return self.probe is None or self.probe.device != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What an image takes of the network, and of what is recomputed of it."""

    flops: Flops
    activations: Activations
    told: str = ""  # what engine.gradient_checkpointing=auto chooses


def described(
    stage: Stage, cluster: Cluster, given: Basis, image: Image, tensors: int
) -> tuple[Machine, tuple[str, ...]]:
    """For `stage` with so many trained tensors on `cluster`, and in sentences what it rests on.

    Raises:
        UsageError: for a measurement in another precision.
    """
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
