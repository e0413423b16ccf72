"""From a run to what others use: a pipeline, in either layout, or an autoencoder, whose latents are measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.data.excerpt import first
from bigdiff.data.images import ImageReader, ImageSet
from bigdiff.export import autoencoder, diffusers, original
from bigdiff.train.data import course, framing, opened

LAYOUTS: Final = ("diffusers", "original")  # a folder, or one file


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """What was written, for a person."""

    checkpoint: Path
    weights: str  # what they are, in words
    note: str  # "" or what was found on the way


def export(
    run: Path, output: Path, weights: str = "ema", dtype: str = "float32", layout: str = "diffusers", step: int = 0
) -> Released:
    """Write a checkpoint of `run`, that of `step` or the newest undamaged one, to `output`, loaded back and compared.

    `output` is a folder in diffusers' layout and a .safetensors file in the original one.

    Raises:
        UsageError: when `run` has no such checkpoint, its data are needed and not there, `output` is not free, or the
            original layout has no such networks.
        RunError: when what was written does not load back to the same, or nothing can be measured.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout={layout} is not one of {', '.join(LAYOUTS)}")
    source = diffusers.read(run, weights, step)
    if layout == "original":
        note = "; ".join(original.export(source, output, dtype).untold)
        return Released(checkpoint=source.checkpoint, weights=source.which, note=note)
    if source.stage.model.autoencoder is None:
        diffusers.write(source, output, dtype)
        return Released(checkpoint=source.checkpoint, weights=source.which, note="")
    scale = _autoencoder(source, output, dtype)
    note = f"scaling factor {scale.factor:.6g}, measured on {scale.pictures} pictures"
    return Released(checkpoint=source.checkpoint, weights=source.which, note=note)


def _autoencoder(source: diffusers.Source, output: Path, dtype: str) -> autoencoder.Scale:
    stage = source.stage
    with opened(stage.data) as sets:
        reader = ImageReader([one for one in sets if isinstance(one, ImageSet)], framing(stage))
        pictures = first(reader, course(stage, sets), autoencoder.MEASURED)
        return autoencoder.export(source, pictures, output, dtype)
