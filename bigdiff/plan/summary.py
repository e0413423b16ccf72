"""A stage on a cluster in a few lines: size, batch, length, where it reads and writes."""

from dataclasses import dataclass
from pathlib import Path

from bigdiff.config.schema import Cluster, Stage, accumulation, sources
from bigdiff.data import manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How much a stage sees."""

    samples: int  # over the whole stage, repetitions included
    per_epoch: int  # in the latent set; 0 when the set is not there

    @property
    def epochs(self) -> float:
        """Times the whole set is seen; 0 when the set is not there."""
        return self.samples / self.per_epoch if self.per_epoch else 0.0


def length(stage: Stage) -> Length:
    """Samples and epochs of `stage`.

    Raises:
        UsageError: for a latent set that is there but cannot be read.
    """
    folders = [Path(source.latents) for source in sources(stage.data)]
    there = all((folder / manifest.NAME).is_file() for folder in folders)
    per_epoch = sum(manifest.read(folder, "latents").samples for folder in folders) if there else 0
    return Length(samples=stage.steps * stage.batch.total, per_epoch=per_epoch)


def summary(stage: Stage, cluster: Cluster, parameters: int) -> str:
    """Lines for a person; `parameters` as plan.parameters counts them.

    Raises:
        UsageError: when the batch does not divide over the cluster's processes.
    """
    passes = accumulation(stage, cluster.nodes * cluster.processes_per_node)
    seen = length(stage)
    epochs = (
        f"{seen.epochs:.2f} of {seen.per_epoch:,} samples"
        if seen.per_epoch
        else f"unknown: {', '.join(source.latents for source in sources(stage.data))} is not there yet"
    )
    rows = {
        "parameters": f"{parameters:,} (UNet)",
        "global batch": f"{stage.batch.total} = {cluster.nodes} nodes x {cluster.processes_per_node} processes x "
        f"{stage.batch.micro} samples x {passes} accumulation",
        "steps": f"{stage.steps:,}",
        "samples": f"{seen.samples:,}",
        "epochs": epochs,
        "starts from": f"the EMA weights of {stage.init_from}" if stage.init_from else "random weights",
        "run folder": str(Path(stage.runs) / stage.name),
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items())
