"""A stage on a cluster in a few lines: size, batch, length, where it reads and writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigdiff.config import engine_rules
from bigdiff.config.cluster import Cluster
from bigdiff.config.schema import Stage, on_images, sources
from bigdiff.data import manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How much a stage sees."""

    samples: int  # over the whole stage, repetitions included
    per_epoch: int  # in the set; 0 when it is not there

    @property
    def epochs(self) -> float:
        """Times the whole set is seen; 0 when the set is not there."""
        return self.samples / self.per_epoch if self.per_epoch else 0.0


def length(stage: Stage) -> Length:
    """Samples and epochs of `stage`.

    Raises:
        UsageError: for a set that is there but cannot be read.
    """
    folders = [Path(source.location) for source in sources(stage.data)]
    there = all((folder / manifest.NAME).is_file() for folder in folders)
    kind: Literal["images", "latents"] = "images" if on_images(stage.data) else "latents"
    per_epoch = sum(manifest.read(folder, kind).samples for folder in folders) if there else 0
    return Length(samples=stage.steps * stage.batch.total, per_epoch=per_epoch)


def start(stage: Stage) -> str:
    """What a stage starts from, in words."""
    if not stage.init_from:
        return stage.beginning
    weights = {"ema": "EMA", "raw": "raw"}.get(stage.init_weights, stage.init_weights)
    also = {"averages": stage.init_ema, "AdamW's state": stage.init_optimizer, "the schedule": stage.init_schedule}
    at = f" at step {stage.init_step}" if stage.init_step else ""
    return ", ".join([f"the {weights} weights of {stage.init_from}{at}", *(name for name, on in also.items() if on)])


def summary(stage: Stage, cluster: Cluster, parameters: Mapping[str, int]) -> str:
    """Lines for a person; `parameters` by network, as plan.parameters counts them.

    Raises:
        UsageError: when the batch does not divide over the cluster's processes, or would be summed in bf16.
    """
    passes = engine_rules.passes(stage, cluster.nodes * cluster.processes_per_node, gpu=cluster.gpus_per_node > 0)
    seen = length(stage)
    epochs = (
        f"{seen.epochs:.2f} of {seen.per_epoch:,} samples"
        if seen.per_epoch
        else f"unknown: {', '.join(source.location for source in sources(stage.data))} is not there yet"
    )
    rows = {
        "parameters": ", ".join(f"{count:,} ({name})" for name, count in parameters.items()),
        "global batch": f"{stage.batch.total} = {cluster.nodes} nodes x {cluster.processes_per_node} processes x "
        f"{stage.batch.micro} samples x {passes} accumulation",
        "steps": f"{stage.steps:,}",
        "samples": f"{seen.samples:,}",
        "epochs": epochs,
        "starts from": start(stage),
        "run folder": str(Path(stage.runs) / stage.name),
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items())
