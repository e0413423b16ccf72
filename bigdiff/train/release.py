"""From a run to what others use: a diffusers pipeline, or an autoencoder, whose latents are measured."""

from dataclasses import dataclass
from pathlib import Path

from bigdiff.data.excerpt import first
from bigdiff.data.images import ImageReader, ImageSet
from bigdiff.export import autoencoder, diffusers
from bigdiff.train.data import course, framing, opened


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """What was written, for a person."""

    checkpoint: Path
    weights: str  # what they are, in words
    note: str  # "" or what was found on the way


def export(run: Path, output: Path, weights: str = "ema", dtype: str = "float32", step: int = 0) -> Released:
    """Write a checkpoint of `run` to the folder `output`, loaded back and compared: that of `step`, or the newest.

    Raises:
        UsageError: when `run` has no such checkpoint, its data are needed and not there, or `output` is not free.
        RunError: when what was written does not load back to the same, or nothing can be measured.
    """
    source = diffusers.read(run, weights, step)
    stage = source.stage
    if stage.model.autoencoder is None:
        written = diffusers.export(run, output, weights, dtype, step)
        return Released(checkpoint=written.checkpoint, weights=written.which, note="")
    with opened(stage.data) as sets:
        reader = ImageReader([one for one in sets if isinstance(one, ImageSet)], framing(stage))
        pictures = first(reader, course(stage, sets), autoencoder.MEASURED)
        scale = autoencoder.export(source, pictures, output, dtype)
    note = f"scaling factor {scale.factor:.6g}, measured on {scale.pictures} pictures"
    return Released(checkpoint=source.checkpoint, weights=source.which, note=note)
