"""Can a stage begin: is there what it starts from, and its data. A queue may take days to find out that it cannot."""

from pathlib import Path
from typing import Final

from bigdiff.checkpoint import predecessor
from bigdiff.checkpoint.layout import latest, run_folder, step_of
from bigdiff.config.errors import UsageError
from bigdiff.config.graph import place
from bigdiff.config.schema import Stage, on_images, single_file, sources
from bigdiff.data import manifest

_MEND: Final = "encode a set for this stage with data_prep/encode_latents.py, or name another as data.latents"


def reached(stage: Stage) -> int:
    """The step of the stage's newest checkpoint, 0 before the first."""
    newest = latest(run_folder(stage.runs, stage.name))
    return step_of(newest) if newest else 0


def startable(stage: Stage) -> None:
    """Refuse a stage whose run would find, on all its nodes, that what it starts from is not there.

    Raises:
        UsageError: as bigdiff.checkpoint.predecessor.chosen, or when `init_unet` names a file that is not there.
    """
    if reached(stage):
        return
    if stage.init_from:
        predecessor.chosen(stage)
    if single_file(stage.init_unet) and not Path(stage.init_unet).expanduser().is_file():
        raise UsageError(f"stage {stage.name}: init_unet={stage.init_unet} is not there")


def has_data(stage: Stage, made: frozenset[str] = frozenset()) -> None:
    """Refuse a stage whose shard sets are not there, or not for it, where they lie in folders.

    Sets whose config.graph.place is in `made` are still to come. Of a contract only what no weights are needed for is
    compared; the stage itself compares all of it.

    Raises:
        UsageError: as bigdiff.data.manifest.read, or naming the line of the contract that differs.
    """
    for one in sources(stage.data):
        if "://" in one.location or place(one.location) in made:
            continue
        found = manifest.read(Path(one.location), "images" if on_images(stage.data) else "latents")
        if on_images(stage.data) or stage.model.vae is None:
            continue
        wanted = {"vae_factor": stage.model.vae.factor, "latent_channels": stage.model.unet.latent_channels}
        wanted |= {} if stage.data.buckets else {"resolution": stage.resolution}
        for line, value in wanted.items():
            has = found.contract.get(line, value)
            if has != value:
                raise UsageError(f"{one.location} has {line} {has}, stage {stage.name} needs {value}: {_MEND}")
