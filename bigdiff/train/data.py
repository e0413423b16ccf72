"""A stage's latent sets, the course of its run over them, and this process's batches."""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bigdiff.checkpoint.layout import run_folder
from bigdiff.checkpoint.state import Identity
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Data, Stage, sources
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine, read_tombstones
from bigdiff.data.device import on_device
from bigdiff.data.latents import Batch, LatentReader, LatentSet
from bigdiff.data.ledger import Ledger, Place, header, new_start
from bigdiff.data.mixture import Source
from bigdiff.data.storage import Cache
from bigdiff.data.stream import Ahead, Slice, batches
from bigdiff.runtime.world import World


@contextmanager
def opened(data: Data) -> Iterator[list[LatentSet]]:
    """The stage's sets in the order of its sources."""
    tombstones = read_tombstones(data.tombstones)
    cache = Cache(folder=data.cache, bytes=int(data.cache_gb * 1e9)) if data.cache else None
    with ExitStack() as stack:
        yield [
            stack.enter_context(LatentSet(one.latents, tombstones, cache if "://" in one.latents else None))
            for one in sources(data)
        ]


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


def course(stage: Stage, sets: list[LatentSet]) -> Course:
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


def fingerprint(sets: list[LatentSet]) -> str:
    """Of all sets' exact bytes: that of the one, or sha256 over those of several."""
    digests = [one.fingerprint for one in sets]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def identity(stage: Stage, sets: list[LatentSet], path: Course) -> Identity:
    """What must be equal for a resume to continue the same run."""
    return Identity(seed=stage.seed, manifest=fingerprint(sets), total=stage.batch.total, order=path.fingerprint)


def stream(
    stage: Stage, world: World, sets: list[LatentSet], path: Course, start: int, quarantine: Quarantine
) -> Generator[list[Batch], None, None]:
    """This process's micro-batches on its device, from position `start` on, without end."""
    part = Slice(total=stage.batch.total, micro=stage.batch.micro, rank=world.rank, size=world.size)
    ahead = Ahead(steps=stage.data.read_ahead, threads=stage.data.read_threads)
    return on_device(batches(LatentReader(sets), path, part, start, ahead, quarantine), world.device)


def start_name(stage: Stage, world: World) -> str:
    """What this start of the run is called in its audit, drawn before the checkpoint is chosen; collective."""
    return str(world.first_says(new_start(run_folder(stage.runs, stage.name)))) if stage.data.audit else ""


def ledger(stage: Stage, sets: list[LatentSet], path: Course, place: Place) -> Ledger | None:
    """Where this process writes down what it consumed. None without data.audit."""
    if not stage.data.audit:
        return None
    written = header(path, [one.fingerprint for one in sets], "latents", place)
    return Ledger(run_folder(stage.runs, stage.name), written)
