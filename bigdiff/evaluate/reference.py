"""What the networks see in the real pictures: made once, kept under a name that says of what and by what, used again.

A kept one is a folder: the blocks of features, `statistics.safetensors` (mean and covariance of Inception's features),
and `about.json`, which is written last. Other programs' statistics are `.npz` files with `mu` and `sigma`, as
pytorch-fid and clean-fid write them; they give FID alone.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import FEATURES, Evaluation, refuse_few
from bigdiff.evaluate import blocks, pictures
from bigdiff.evaluate.blocks import Work
from bigdiff.evaluate.frechet import Gaussian
from bigdiff.evaluate.networks import COSINE, INCEPTION
from bigdiff.evaluate.pictures import Stored
from bigdiff.runtime.files import replacing, sha256, write_json
from bigdiff.runtime.versions import versions
from bigdiff.runtime.workers import Workers
from bigdiff.runtime.world import World

ABOUT: Final = "about.json"
STATISTICS: Final = "statistics.safetensors"
_KIND: Final = "features of real pictures"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The real set; what is not compared is None."""

    about: dict[str, Any]  # where it came from, for results
    gaussian: Gaussian | None = None
    folder: Path | None = None  # of its blocks
    count: int = 0

    def features(self, name: str) -> Tensor | None:
        """The features `name` of all its pictures; None where there are none."""
        if self.folder is None or name not in self.about["networks"]:
            return None
        return blocks.read(self.folder, name, blocks.cut(self.count))


def prepare(wanted: Evaluation, fingerprint: dict[str, str], world: World, workers: Workers) -> Reference:
    """The real set of `wanted`, made or found; collective. `fingerprint` is that of the networks, by name.

    Raises:
        UsageError: when it cannot be had, was made by other networks, or is too small.
    """
    place = Path(wanted.real)
    if place.suffix == ".npz":
        return of_file(place, wanted)
    needed = {name: one for name, one in fingerprint.items() if name != COSINE}
    if (place / ABOUT).is_file():
        world.first_does(lambda: _check(place, wanted, needed))
        return kept(place, world)
    folder, count, identity = world.first_does(lambda: _named(wanted, needed))
    if not (folder / ABOUT).is_file():
        _make(folder, count, wanted, world, workers)
        if world.first:
            about = {
                "kind": _KIND,
                "pictures": identity,
                "place": wanted.real,
                "count": count,
                "crop": wanted.real_crop,
                "networks": needed,
                "versions": versions(),
            }
            write_json(folder / ABOUT, about)
        world.barrier()
    return kept(folder, world)


def of_file(file: Path, wanted: Evaluation) -> Reference:
    """Statistics of another program.

    Raises:
        UsageError: when they cannot be read, or are not enough.
    """
    if wanted.judges.cmmd_clip:
        raise UsageError(
            f"--real {file} holds means and covariances: --cmmd-clip needs the pictures; name their folder"
        )
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UsageError(
            f"--real {file} cannot be read as mu and sigma ({error}): name a folder of pictures"
        ) from error
    if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
        raise UsageError(
            f"--real {file} has mu of shape {list(mean.shape)} and sigma of shape {list(covariance.shape)}, not those "
            f"of Inception's {FEATURES:,} features: name statistics that pytorch-fid or clean-fid wrote"
        )
    about: dict[str, Any] = {"place": str(file), "networks": {}, "count": None, "sha256": sha256(file)}
    return Reference(about=about, gaussian=Gaussian(mean=mean, covariance=covariance, count=None))


def kept(folder: Path, world: World) -> Reference:
    """The one in `folder`; collective, and its numbers are for rank 0 alone."""
    about: dict[str, Any] = world.first_does(lambda: json.loads((folder / ABOUT).read_bytes()))
    gaussian = None
    if world.first and (folder / STATISTICS).is_file():
        gaussian = Gaussian(**load_file(folder / STATISTICS), count=about["count"])
    return Reference(about=about, gaussian=gaussian, folder=folder, count=about["count"])


def _check(folder: Path, wanted: Evaluation, needed: dict[str, str]) -> None:
    about = json.loads((folder / ABOUT).read_bytes())
    if about.get("kind") != _KIND:
        raise UsageError(f"--real {folder}: its {ABOUT} is not that of an evaluation's real set: name another folder")
    for name, one in needed.items():
        if about["networks"].get(name) != one:
            raise UsageError(
                f"--real {folder} was seen by another {name} network ({about['networks'].get(name, 'none')}; here "
                f"{one}): name the folder of the pictures themselves, {about['place']}"
            )
    refuse_few(wanted, about["count"], f"--real {folder}")


def _named(wanted: Evaluation, needed: dict[str, str]) -> tuple[Path, int, str]:
    """Where the features of the real set lie, how many pictures it has, and their identity."""
    source = pictures.opened(_source(wanted))
    refuse_few(wanted, source.count, f"--real {wanted.real}")
    identity = source.identity()
    content = json.dumps([identity, wanted.real_crop, needed], sort_keys=True)
    root = wanted.cache or wanted.output / "real"
    return root / hashlib.sha256(content.encode()).hexdigest()[:16], source.count, identity


def _source(wanted: Evaluation) -> Stored:
    return Stored(place=wanted.real, crop=wanted.real_crop)


def _make(folder: Path, count: int, wanted: Evaluation, world: World, workers: Workers) -> None:
    spans = blocks.cut(count)
    works = [
        Work(folder=folder, source=_source(wanted), judges=wanted.judges, begin=begin, end=end) for begin, end in spans
    ]
    blocks.make(works, world, workers, "real pictures")
    world.barrier()
    if wanted.judges.inception:
        found = blocks.gaussian(folder, INCEPTION, spans, world)
        if world.first:
            with replacing(folder / STATISTICS) as temporary:
                save_file({"mean": found.mean, "covariance": found.covariance}, temporary)
