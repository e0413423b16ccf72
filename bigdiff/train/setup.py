"""From a stage's config to a running stage: the one place that knows every concrete class."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bigdiff.checkpoint import layout, probe, snapshots
from bigdiff.checkpoint.content import MOMENTS
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.engine_rules import passes
from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump
from bigdiff.config.schema import Stage, on_images
from bigdiff.data.course import Course
from bigdiff.data.ledger import Place
from bigdiff.engine.deepspeed import Engine
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models.ema import Averages
from bigdiff.runtime.allocator import keep_freed
from bigdiff.runtime.files import write_bytes, write_json
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.versions import commit, versions
from bigdiff.runtime.watchdog import Watchdog, collective_timeout
from bigdiff.runtime.world import World, enter, host, leave
from bigdiff.train import (
    autoencoders,
    handover,
    kept,
    loop,
    networks,
    preflight,
    pretrained,
    recomputing,
    regrouped,
    report,
    resuming,
)
from bigdiff.train import data as stream
from bigdiff.train.held import Held
from bigdiff.train.held import opened as held_samples
from bigdiff.train.held_pictures import HeldPictures
from bigdiff.train.held_pictures import opened as held_pictures
from bigdiff.train.preflight import Check
from bigdiff.train.recovery import Curve
from bigdiff.train.regrouped import Around
from bigdiff.train.resuming import Standing, warn
from bigdiff.train.run import CURVE, START, Outcome, Run
from bigdiff.train.usage import Usage
from bigdiff.train.usage import begin as begin_usage


def train_stage(stage: Stage, check: Check | None = None) -> Outcome:
    """Train `stage` on this process's share until it is finished or stopped; called by every process alike.

    With `check` the processes and their nodes are looked at before.
    """
    stop = Stop()
    stop.listen()
    limit, folder = stage.engine.timeout_seconds, layout.run_folder(stage.runs, stage.name)
    world = enter(collective_timeout(limit), gpu=check is not None and check.gpu)
    try:
        with Watchdog(world, folder, limit) as watch:
            passes(stage, world.size, gpu=world.device.type == "cuda")
            if world.device.type == "cpu":
                keep_freed()
            if check is not None:
                preflight.run(stage, check, folder / "logs", world, speaker(world))
            with building(stage, world, stop, watch) as run:
                outcome = loop.train(run)
            world.barrier()  # nobody leaves while another still talks to it
        return outcome
    finally:
        leave()


@contextmanager
def building(stage: Stage, world: World, stop: Stop, watch: Watchdog) -> Iterator[Run]:
    """The run of `stage` on this process, resumed from its newest good checkpoint; closes what it opened."""
    folder = layout.run_folder(stage.runs, stage.name)
    mark = probe.begin(folder, world)
    with stream.opened(stage.data) as sets, ExitStack() as closing:
        course = stream.course(stage, sets)
        found = autoencoders.load(stage) if stage.model.autoencoder else networks.load(stage)
        given = pretrained.settle(stage, world, found.module)
        stored = kept.settle(stage, world, found.untrained(), found.kept())
        around = Around(kept=stored.names, loaded=found.loaded() | given)  # before the engine rounds them
        prepared, chosen = prepare(found, sets, course, world), recomputing.settle(stage, found.module, world)
        held = closing.enter_context(held_out_samples(found, world)) if stage.validation.set else None
        engine = Engine(found.module, found.trained(), stage, world)
        identity = stream.identity(stage, sets, course, stored.sha256)
        ema, start = Averages(engine.partition.masters, stage.ema), stream.start_name(stage, world)
        names = [*MOMENTS, *ema.tensors]
        checkpoints = CheckpointWriter(folder, world, engine.partition, names, stage.checkpoint, mark)
        standing = resume(stage, world, engine, ema, identity, around)
        del around, given  # the size of the network, on each process
        state, usage = standing.state, begin_usage(found, sets, engine.half, world, chosen)
        writer = writing(stage, folder, sets, state, usage) if world.first else None
        place = Place(start=start, parent=standing.start, step=state.step, rank=world.rank, size=world.size)
        feed = stream.feed(stage, world, sets, course, place, state.samples_seen)
        for opened in (checkpoints, writer, feed.ledger, feed.batches):  # closed in the reverse order
            if opened is not None:
                closing.callback(opened.close)
        run = Run(
            stage=stage,
            folder=folder,
            world=world,
            hosts=world.gather(host()),
            watch=watch,
            sets=sets,
            course=course,
            batches=feed.batches,
            quarantine=feed.quarantine,
            ledger=feed.ledger,
            start=start,
            task=prepared.task(engine, world),
            engine=engine,
            ema=ema,
            checkpoints=checkpoints,
            losses=[],
            state=state,
            curve=standing.curve,
            saved=standing.saved,
            began=state.samples_seen,
            identity=identity,
            meters=Meters(stage.diffusion.train_timesteps, world),
            usage=usage,
            writer=writer,
            preview=prepared.preview,
            held=held,
            stop=stop,
            say=speaker(world),
        )
        announce(run)
        yield run


def held_out_samples(
    found: networks.Networks | autoencoders.Networks, world: World
) -> AbstractContextManager[Held | HeldPictures]:
    """What the stage is validated on.

    Raises:
        UsageError: for a set that does not fit the stage, or has too few samples.
    """
    if isinstance(found, autoencoders.Networks):
        return held_pictures(found, world)
    return held_samples(found, world)


def prepare(
    found: networks.Networks | autoencoders.Networks, sets: stream.Sets, course: Course, world: World
) -> networks.Prepared | autoencoders.Prepared:
    """What the networks need before the engine takes them; collective."""
    if isinstance(found, autoencoders.Networks):
        return autoencoders.prepare(found, sets, course, world)
    return networks.prepare(found, sets, world.device)


def speaker(world: World) -> Callable[[str], None]:
    """Lines for a person on standard output, from rank 0 alone, as they come."""

    def say(line: str) -> None:
        if world.first:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    logging.captureWarnings(True)
    return say


def announce(run: Run) -> None:
    """Tell a person what begins, and what it will not have."""
    run.say(
        f"{run.stage.name}: {run.engine.partition.total:,} trained parameters, "
        f"{sum(one.manifest.samples for one in run.sets):,} samples, "
        f"{run.world.size} processes on {run.world.device.type}, {'bf16 over fp32' if run.engine.half else 'fp32'}, "
        f"from step {run.state.step}"
    )
    if not run.ema.tensors:
        run.say("no averages: previews, export and the stages that start from this one take the weights themselves")
    if run.usage.recomputed:
        run.say(run.usage.recomputed)
    if run.usage.lacks:
        run.say(f"no speed/mfu: {run.usage.lacks}")


def resume(stage: Stage, world: World, engine: Engine, ema: Averages, identity: Identity, around: Around) -> Standing:
    """Weights, optimizer and EMA from the newest good checkpoint of this run, or at first from what it starts from.

    Raises:
        UsageError: when the checkpoint belongs to another data order, so that a resume would not continue it, or what
            the stage starts from cannot be had.
    """
    saved = resuming.newest(stage, world, engine, ema)
    if saved is None:
        begin(stage, world, engine, ema, around)
        return Standing(state=TrainState(step=0, samples_seen=0), curve=Curve())
    changed = identity.differences(saved.identity)
    if changed:
        folder = layout.run_folder(stage.runs, stage.name)
        raise UsageError(
            f"{folder} cannot be continued: {'; '.join(changed)}. Undo that, or use another `name` or `runs`"
        )
    for line in resuming.put_back(stage, saved, engine, ema):
        if world.first:
            warn(f"{saved.folder}: {line}")
    return Standing(
        state=saved.state,
        curve=Curve.parse(saved.about.get(CURVE, ""), stage.recovery.window),
        start=saved.about.get(START, ""),
        saved=True,
    )


def begin(stage: Stage, world: World, engine: Engine, ema: Averages, around: Around) -> None:
    """Put in what the stage starts from: another run, or what it loads, which the engine may have rounded to bf16."""
    if not stage.init_from:
        if around.loaded and engine.half:
            regrouped.put(engine, ema, around.loaded)
        if stage.init_unet and world.first:
            speaker(world)(pretrained.line(layout.run_folder(stage.runs, stage.name)))
        return
    record, said = handover.begin(stage, layout.run_folder(stage.runs, stage.name), world, engine, ema, around)
    engine.began = record.carried.step
    speaker(world)(handover.line(record))
    for line in said if world.first else []:
        warn(f"{record.checkpoint}: {line}")


def writing(stage: Stage, folder: Path, sets: stream.Sets, state: TrainState, usage: Usage) -> Writer:
    """Describe the run, drop what a later state left, and open its metrics; on one process."""
    about = describe(folder, stage, sets)
    snapshots.forget(folder, state.step)
    writer = Writer(folder / layout.TENSORBOARD, folder / layout.METRICS, state.samples_seen)
    writer.layout(report.charts(stage, usage))
    writer.text("run/config", dump(stage), state.samples_seen)
    writer.text("run/about", json.dumps(about, indent=2, sort_keys=True), state.samples_seen)
    return writer


def describe(folder: Path, stage: Stage, sets: stream.Sets) -> dict[str, Any]:
    """Write what explains the run to a reader: resolved config, versions and commit, the data's manifest hashes."""
    write_bytes(folder / layout.CONFIG, dump(stage).encode())
    hashes = {one.location: one.fingerprint for one in sets}
    about = {"versions": versions(), "commit": commit(), "images" if on_images(stage.data) else "latents": hashes}
    write_json(folder / "versions.json", about)
    return about
