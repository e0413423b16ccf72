"""The start of a life of a run: can every rank write to its folder, and under which mark will it do so."""

import os
import secrets
from pathlib import Path

from bigdiff.checkpoint import layout, retention
from bigdiff.config.errors import UsageError
from bigdiff.runtime.world import World, host


def begin(run: Path, world: World) -> str:
    """Clear what earlier lives left, try to write on every rank, and agree on this life's mark; collective.

    The mark is part of every temporary name: a rank of an earlier life may still be writing.

    Raises:
        UsageError: on all ranks, naming one that cannot write, or does not see what rank 0 wrote.
    """
    mark = str(world.first_says(secrets.token_hex(8)))
    folder = layout.checkpoints(run)
    first = folder / f"{layout.PROBE}{mark}-first"
    problem = world.first_says(_prepared(run, first) if world.first else "")
    problems = [problem] if problem else world.gather(_tried(folder / f"{layout.PROBE}{mark}-{world.rank}", first))
    found = [(rank, problem) for rank, problem in enumerate(problems) if problem]
    if found:
        rank, sentence = found[0]
        others = f" (and {len(found) - 1} other ranks)" if len(found) > 1 else ""
        raise UsageError(f"rank {rank}{others} cannot save to {folder}: {sentence}")
    if world.first:
        first.unlink()
    return mark


def _prepared(run: Path, probe: Path) -> str:
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        retention.clear(run)
        _write(probe)
    except OSError as error:
        return _sentence(error)
    return ""


def _tried(mine: Path, first: Path) -> str:
    if not first.exists():
        return f"{host()} does not see what rank 0 wrote; `runs` must be a folder that all nodes share"
    try:
        _write(mine)
        mine.unlink()
    except OSError as error:
        return _sentence(error)
    return ""


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, b"a probe")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sentence(error: OSError) -> str:
    return f"{error.strerror} on {host()}; make room for it there, or set `runs` to a folder that can be written"
