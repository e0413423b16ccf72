"""What a run makes of its devices and what they cost: FLOP/s, MFU and money, over all its starts."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from bigdiff.checkpoint.layout import METRICS, run_folder
from bigdiff.config.schema import on_images
from bigdiff.metrics import readings
from bigdiff.models import flops
from bigdiff.models.denoiser import build_denoiser
from bigdiff.models.network import Network
from bigdiff.runtime import devices
from bigdiff.runtime.records import read, write
from bigdiff.runtime.world import World
from bigdiff.train import autoencoders
from bigdiff.train.data import Sets
from bigdiff.train.networks import TEXT_STATES, Networks
from bigdiff.train.recomputing import Chosen

RECORD: Final = "usage.json"  # in the run's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One start of a run; an entry of usage.json."""

    time: float  # seconds since 1970, when its networks stood
    devices: int
    device: str  # as its driver calls it, of rank 0; "cpu"
    flops: int  # that an image needs; 0 where they are not counted
    network: str  # sha256 of what they were counted of
    seconds: float = 0.0  # until its last reading; written by the start after it
    recomputed: bool | str = False  # what engine.gradient_checkpointing=auto came to, as one of its other values


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """By what a reading's images and hours become FLOP/s and money."""

    starts: tuple[Start, ...]  # of the run, the oldest first; the last is this one
    peak: float  # of a device, FLOP/s; 0 where it is not known
    price: float  # of a device and hour; 0: none
    lacks: str = ""  # why there will be no speed/mfu, for a person
    recomputed: str = ""  # what engine.gradient_checkpointing=auto chose, for a person

    def figures(self, images_per_second: float, hours_left: float, now: float) -> dict[str, float]:
        """By tag, of a reading at `now`, in seconds since 1970.

        `speed/mfu` is model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B): the FLOPs that the images
        of a second need, over what the devices could compute at their stated peak. Needed are the forward and backward
        pass and the frozen networks that a step runs, a multiply-add being two; what gradient checkpointing computes a
        second time is not. The time is all of it: waits for data, log, validation, previews, checkpoints.
        """
        now_on = self.starts[-1]
        each = now_on.flops * images_per_second / now_on.devices
        found = {"speed/restarts": float(len(self.starts) - 1)}
        if each:
            found["speed/tflops_per_device"] = each / 1e12
        if each and self.peak:
            found["speed/mfu"] = each / self.peak
        if self.price:
            found["cost/so_far"] = self.price * self.hours(now)
            found["cost/left"] = self.price * now_on.devices * hours_left
        return found

    def hours(self, now: float) -> float:
        """Device-hours of training: of the starts before until their last readings, of this one until `now`."""
        *earlier, last = self.starts
        return (sum(one.devices * one.seconds for one in earlier) + last.devices * (now - last.time)) / 3600


def begin(
    found: Networks | autoencoders.Networks, sets: Sets, half: bool, world: World, chosen: Chosen | None = None
) -> Usage:
    """Add this start to the run's record, before the writer drops the lines that it does again; collective.

    `chosen` is what engine.gradient_checkpointing=auto came to.

    Raises:
        RunError: on rank 0, for a record that is not one.
    """
    names: list[str] = world.gather(called(world.device))
    starts: tuple[Start, ...] = world.first_does(lambda: _begun(found, sets, names, chosen))
    known, lacks = peak(names, half)
    if not starts[-1].flops:
        lacks = "the FLOPs of an autoencoder's stage are not counted"
    said = chosen.line(starts[-1].flops) if chosen else ""
    price = found.stage.log.price_per_device_hour
    return Usage(starts=starts, peak=known, price=price, lacks=lacks, recomputed=said)


def peak(names: Sequence[str], half: bool) -> tuple[float, str]:
    """FLOP/s of each of the devices that their drivers call `names`, or 0 and why that is not known."""
    rows = {one: devices.called(one) for one in names}
    row = rows[names[0]]
    unknown = ", ".join(sorted(name for name, one in rows.items() if one is None))
    if row is None or unknown:
        return 0.0, f"bigdiff/runtime/devices.py has no peak of {unknown}"
    if len(rows) > 1:
        return 0.0, f"the devices differ: {', '.join(sorted(rows))}"
    if not half:  # by default torch multiplies matrices in fp32 and convolves in TF32
        return 0.0, "the stage computes in fp32, and the peaks that are known are of bf16"
    return row.peak, ""


def called(device: torch.device) -> str:
    """A device by its driver's name for it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def network(found: Networks, sets: Sets) -> Network:
    """What a step of `found` runs, without gradient checkpointing, on the meta device: no memory and no weights.

    With buckets its pictures are the square, which has about as many pixels as each of them.
    """
    stage, text = found.stage, found.denoiser.text_encoder
    stored = any(one.manifest.contract.get(TEXT_STATES) for one in sets)
    encodes = found.vae is not None and on_images(stage.data)
    stage = replace(stage, engine=replace(stage.engine, gradient_checkpointing=False))
    with torch.device("meta"):
        denoiser = build_denoiser(stage, None if text is None or stored else CLIPTextModel(text.config))
        encoder = AutoencoderKL.from_config(found.vae.config) if found.vae is not None and encodes else None
    return Network(stage=stage, denoiser=denoiser, encoder=encoder, notes=())


def _begun(
    found: Networks | autoencoders.Networks, sets: Sets, names: Sequence[str], chosen: Chosen | None
) -> tuple[Start, ...]:
    folder = run_folder(found.stage.runs, found.stage.name)
    earlier = read(folder / RECORD, lambda one: Start(**one), "starts")
    if earlier:
        until = readings.last(folder / METRICS).get("time", 0.0)
        earlier[-1] = replace(earlier[-1], seconds=max(0.0, round(until - earlier[-1].time, 3)))
    needed, mark = _counted(found, sets, earlier[-1] if earlier else None)
    began = round(time.time(), 3)
    how = chosen.how if chosen else False
    now = Start(time=began, devices=len(names), device=names[0], flops=needed, network=mark, recomputed=how)
    write(folder / RECORD, [*earlier, now])
    return (*earlier, now)


def _counted(found: Networks | autoencoders.Networks, sets: Sets, before: Start | None) -> tuple[int, str]:
    """FLOPs that an image needs, taken from the start before where that ran the same network."""
    if isinstance(found, autoencoders.Networks):
        return 0, ""
    built = network(found, sets)
    mark = _fingerprint(built)
    if before is not None and before.network == mark:
        return before.flops, mark
    return flops.of(built).needed, mark


def _fingerprint(built: Network) -> str:
    """Of all that the count depends on; the versions of the libraries are taken not to matter."""
    shapes: list[Any] = [
        [name, list(one.shape), one.requires_grad]
        for module in (built.denoiser, built.encoder)
        for name, one in (module.named_parameters() if module is not None else ())
    ]
    model = asdict(built.stage.model)
    stage = built.stage
    text = json.dumps([stage.resolution, stage.text_dropout, model, shapes], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
