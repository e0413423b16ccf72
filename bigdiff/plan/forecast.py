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
from bigdiff.plan import buckets, probe, sharding
from bigdiff.plan.buckets import Bucket
from bigdiff.plan.cost import Cost, cost
from bigdiff.plan.machine import NETWORK, Basis, Image, described
from bigdiff.plan.scaling import Machine, Step, fitted, predict
from bigdiff.plan.sharding import Setting, Sharding
from bigdiff.plan.storage import Pictures, Storage, storage
from bigdiff.runtime.devices import device
from bigdiff.train import recomputing
from bigdiff.train.memory import RESERVED, USABLE, Part, Ranks, Weights, largest_micro, peak, state, transient
from bigdiff.train.recomputing import Counted
from bigdiff.train.volumes import Volume, volumes

_GIVEN: Final = ("cluster", "nodes", "network", "price", "samples", "picture_kb")


@dataclass(frozen=True, kw_only=True, slots=True)
class Better:
    """A setting of the sharding that the model says is better than the stage's own."""

    setting: Setting
    step: Step
    efficiency: float  # relative to the first row, which has the stage's own setting
    fits: bool  # False: nobody knows, as no memory is known


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
    better: Better | None  # None where no setting that fits is worth a name
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
    gpu = given.gpu
    half = in_bf16(stage, gpu)
    found = network(stage)
    known = _Known(
        cluster=cluster,
        given=given,
        weights=Weights(sizes=found.sizes, frozen=found.frozen),
        plain=Image(flops=flops.per_image(stage), activations=activations.per_image(stage, half)),
        auto=recomputing.counted(stage, half) if stage.engine.gradient_checkpointing == AUTO else None,
    )
    weights, limits = known.weights, (1e9 * stage.engine.memory_gb, given.device.memory if given.device else 0.0)
    memory = min(filter(None, limits), default=0.0)
    rows: list[Row] = []
    assumed: list[str] = []
    for number in nodes:
        on = Ranks(count=number * cluster.processes_per_node, gpu=gpu, half=half, memory=memory)
        one = fitted(stage, on.count)
        planned = _planned(one, on, known)
        step, image = planned.step, planned.image
        first = rows[0].step if rows else step
        row = Row(
            nodes=number,
            stage=one,
            image=image,
            step=step,
            efficiency=step.efficiency(first),
            parts=planned.parts,
            largest=_largest(one, weights, on, image, known.auto),
            volumes=volumes(one, weights.sizes, on.count, gpu, half),
            bucket=buckets.best(one, weights, on.count, planned.machine),
            better=_better(one, on, known, planned, first),
            cost=cost(one, step, given.price, given.device.node_watts if given.device else 0.0),
        )
        rows.append(row)
        assumed += [*planned.told, *([f"{number:,} nodes: {image.told}"] if image.told else [])]
    return Forecast(
        stage=stage,
        weights=weights,
        half=half,
        rows=tuple(rows),
        storage=storage(stage, sum(found.sizes), given.pictures),
        assumed=(*dict.fromkeys(assumed), *found.notes),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What all rows rest on."""

    cluster: Cluster
    given: Basis
    weights: Weights
    plain: Image  # with nothing recomputed that the stage does not name
    auto: Counted | None  # None: engine.gradient_checkpointing is not auto
    followed: dict[bool | str, Activations] = field(default_factory=dict)  # by what is recomputed; seconds each


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """A stage, whose micro-batch is fitted, on so many ranks."""

    image: Image
    machine: Machine
    told: tuple[str, ...]
    step: Step
    parts: tuple[Part, ...]


def _planned(stage: Stage, on: Ranks, known: _Known) -> _Planned:
    weights = known.weights
    image = _chosen(stage, on, known, known.auto) if known.auto else known.plain
    machine, told = described(stage, known.cluster, known.given, image, len(weights.sizes))
    passing = transient(stage, weights, on.count, on.half, on.gpu, image.activations)
    return _Planned(
        image=image,
        machine=machine,
        told=told,
        step=predict(stage, weights, on.count, machine),
        parts=(*state(stage, weights, on.count, on.half), *passing),
    )


def _better(stage: Stage, on: Ranks, known: _Known, own: _Planned, first: Step) -> Better | None:
    """The best setting of the sharding that fits, planned as the stage's own is, where it is worth a name."""
    other: Sharding = "overlapped" if stage.engine.sharding == "deepspeed" else "deepspeed"
    one = replace(stage, engine=replace(stage.engine, sharding=other))
    machine, _ = described(one, known.cluster, known.given, own.image, len(known.weights.sizes))
    machines = {stage.engine.sharding: own.machine, other: machine}
    for setting in sharding.better(stage, known.weights, on.count, known.cluster.processes_per_node, machines):
        planned = _planned(setting.of(stage), on, known)  # with auto it may recompute more than the stage's own
        gains = planned.step.efficiency(own.step) >= 1 + sharding.GAIN
        fits = peak(planned.parts) <= USABLE * on.memory - RESERVED
        if gains and (fits or not on.memory):
            efficiency = planned.step.efficiency(first)
            return Better(setting=setting, step=planned.step, efficiency=efficiency, fits=fits)
    return None


def _chosen(stage: Stage, on: Ranks, known: _Known, auto: Counted) -> Image:
    """What an image takes with the units that the trainer will recompute of `stage` on these ranks."""
    chosen, plain = recomputing.choose(stage, on, auto), known.plain
    told = chosen.line(plain.flops.needed)
    if not chosen.names:
        return replace(plain, told=told)
    if chosen.how not in known.followed:
        known.followed[chosen.how] = activations.per_image(recomputing.switched(stage, chosen.how), on.half)
    return Image(
        flops=replace(plain.flops, recomputed=chosen.flops),
        # of many images: of one by itself a weight's gradient may be the most that there is at once
        activations=replace(known.followed[chosen.how], peak=chosen.peak),
        told=told,
    )


def _largest(stage: Stage, weights: Weights, on: Ranks, image: Image, auto: Counted | None) -> int:
    """The largest micro-batch; with auto that of a network that recomputes all, as it will for it."""
    if not on.memory:
        return 0
    if auto is not None:
        return recomputing.largest(stage, on, auto)
    return largest_micro(stage, weights, on.count, on.memory, image.activations)
