"""A stage's shard sets, the course of its run over them, and this process's batches."""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bigdiff.checkpoint.layout import run_folder
from bigdiff.checkpoint.state import Identity
from bigdiff.config.errors import UsageError
from bigdiff.config.network_rules import divisor
from bigdiff.config.schema import Data, Stage, on_images, sources
from bigdiff.data.arena import Arena
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine, read_tombstones
from bigdiff.data.device import on_device
from bigdiff.data.images import CENTRE, Framing, ImageReader, ImageSet, size
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.ledger import Ledger, Place, header, new_start
from bigdiff.data.mixture import Source
from bigdiff.data.storage import Cache
from bigdiff.data.stream import Ahead, Slice, batches
from bigdiff.runtime.world import World
from bigdiff.train.task import Micro

Sets: TypeAlias = list[LatentSet] | list[ImageSet]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """What a process trains on, and what is written down of it."""

    batches: Generator[list[Micro], None, None]  # micro-batches of each optimizer step
    quarantine: Quarantine  # of what could not be used
    ledger: Ledger | None  # of what each step consumed, with data.audit


@contextmanager
def opened(data: Data) -> Iterator[Sets]:
    """The stage's sets in the order of its sources."""
    tombstones = read_tombstones(data.tombstones)
    cache = Cache(folder=data.cache, bytes=int(data.cache_gb * 1e9)) if data.cache else None
    found = [(one.location, tombstones, cache if "://" in one.location else None) for one in sources(data)]
    with ExitStack() as stack:
        if on_images(data):
            yield [stack.enter_context(ImageSet(*one)) for one in found]
            return
        arena = stack.enter_context(closing(Arena(int(data.memory_gb * 1e9)))) if data.memory_gb else None
        yield [stack.enter_context(LatentSet(*one, arena)) for one in found]


def shares(data: Data) -> list[dict[str, Any]]:
    """How each source is mixed, as bigdiff.data.mixture.Source takes it."""
    return [
        {
            "proportion": one.proportion or None,
            "upsample": one.upsample,
            "repeat": one.repeat or None,
            "until": one.until or None,
        }
        for one in sources(data)
    ]


def course(stage: Stage, sets: Sets) -> Course:
    """Which samples make up each global batch of the stage.

    Raises:
        UsageError: when the sources' shares cannot be given, or are exhausted before the stage ends.
    """
    path = Course(
        sources=tuple(
            Source(name=one.location, sizes=one.manifest.sizes, buckets=one.manifest.buckets, **share)
            for one, share in zip(sets, shares(stage.data), strict=True)
        ),
        seed=stage.seed,
        window=stage.data.window,
        lanes=stage.data.canonical_nodes,
        total=stage.batch.total,
    )
    if path.steps is not None and path.steps < stage.steps:
        raise UsageError(
            f"stage {stage.name}: by their repeat and until the data.sources give {path.steps} steps of "
            f"{stage.batch.total} samples, steps={stage.steps} asks for more: lower it or let one source go on"
        )
    return path


def fingerprint(sets: Sets) -> str:
    """Of all sets' exact bytes: that of the one, or sha256 over those of several."""
    digests = [one.fingerprint for one in sets]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def identity(stage: Stage, sets: Sets, path: Course, frozen: str) -> Identity:
    """What must be equal for a resume to continue the same run; `frozen` is the sha256 of its frozen weights."""
    flip = f"mirrored with probability {stage.data.flip:g}"
    latent = flip if stage.data.flip else ""
    drawn = on_images(stage.data) or stage.data.crop != "center"
    framing = f"{stage.data.crop} crop, {flip}" if drawn else latent
    return Identity(
        seed=stage.seed,
        manifest=fingerprint(sets),
        total=stage.batch.total,
        order=path.fingerprint,
        framing=framing,
        frozen=frozen,
    )


def stream(
    stage: Stage, world: World, sets: Sets, path: Course, start: int, quarantine: Quarantine
) -> Generator[list[Micro], None, None]:
    """This process's micro-batches on its device, from position `start` on, without end."""
    part = Slice(total=stage.batch.total, micro=stage.batch.micro, rank=world.rank, size=world.size)
    data = stage.data
    disk = int(data.disk_ahead_gb * 1e9)
    ahead = Ahead(steps=data.read_ahead, threads=data.read_threads, disk_bytes=disk)
    if on_images(stage.data):
        pictures = ImageReader([one for one in sets if isinstance(one, ImageSet)], framing(stage))
        return on_device(batches(pictures, path, part, start, ahead, quarantine), world.device)
    latents = LatentReader([one for one in sets if isinstance(one, LatentSet)])
    return on_device(batches(latents, path, part, start, ahead, quarantine), world.device)


def feed(stage: Stage, world: World, sets: Sets, path: Course, place: Place, position: int) -> Feed:
    """This process's batches from `position` on, without end."""
    quarantine = Quarantine()
    written = ledger(stage, sets, path, place)
    return Feed(batches=stream(stage, world, sets, path, position, quarantine), quarantine=quarantine, ledger=written)


def framing(stage: Stage) -> Framing:
    """How the stage's pictures become squares."""
    resolution = None if stage.data.buckets else stage.resolution
    return Framing(resolution=resolution, crop=stage.data.crop, flip=stage.data.flip, seed=stage.seed)


def fit_shapes(stage: Stage, sets: Sets) -> None:
    """Raise a UsageError for a set whose pictures have other shapes than the stage takes.

    Those are squares of its resolution or, with data.buckets, shapes of at most that many pixels and at least half.
    """
    least, most = divisor(stage), stage.resolution**2
    if stage.data.crop == "random" and all(one.manifest.contract.get("crop") == CENTRE for one in sets):
        raise UsageError(
            f"data.crop=random has no effect on {sets[0].location}, which stores centre squares: build it with "
            f"pack.crop=none, or leave data.crop out"
        )
    for one in sets:
        buckets = sorted({*one.manifest.buckets})
        if not stage.data.buckets:
            if any(buckets):
                raise UsageError(f"the shards of {one.location} have buckets of several shapes: set data.buckets=true")
            continue
        if not all(buckets):
            raise UsageError(f"the shards of {one.location} have no buckets: set data.buckets=false")
        for bucket in buckets:
            width, height = size(bucket, one.location)
            if width % least or height % least:
                raise UsageError(f"bucket {bucket!r} of {one.location} does not divide by the stage's {least} pixels")
            if not most / 2 <= width * height <= most:
                raise UsageError(
                    f"bucket {bucket!r} of {one.location} has {width * height} pixels, resolution={stage.resolution} "
                    f"asks for {most} at most and half of that at least: take the set of that resolution"
                )


def start_name(stage: Stage, world: World) -> str:
    """What this start of the run is called in its audit, drawn before the checkpoint is chosen; collective."""
    return str(world.first_says(new_start(run_folder(stage.runs, stage.name)))) if stage.data.audit else ""


def ledger(stage: Stage, sets: Sets, path: Course, place: Place) -> Ledger | None:
    """Where this process writes down what it consumed. None without data.audit."""
    if not stage.data.audit:
        return None
    kind: Literal["latents", "images"] = "images" if on_images(stage.data) else "latents"
    written = header(path, [one.fingerprint for one in sets], kind, place)
    return Ledger(run_folder(stage.runs, stage.name), written)
