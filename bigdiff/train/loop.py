"""The loop, on one screen."""

import json
from collections.abc import Sequence

import torch

from bigdiff.checkpoint import snapshots
from bigdiff.checkpoint.content import AVERAGES, Content
from bigdiff.runtime.world import Agreed
from bigdiff.train import incidents, report, validating
from bigdiff.train.recovery import Verdict, first_save
from bigdiff.train.run import CURVE, START, Outcome, Run
from bigdiff.train.step import Done, meter, optimizer_step
from bigdiff.train.task import Micro


def train(run: Run) -> Outcome:
    """Train until the stage's last step or an agreed stop; both end in a checkpoint."""
    stage = run.stage
    run.engine.communication()  # what was sent before is not the first reading's
    while run.state.step < stage.steps:
        run.watch.at(run.state.step, "data")
        batches = next(run.batches)
        run.watch.at(run.state.step, "forward and backward")
        done = optimizer_step(run, batches)
        if run.ledger is not None:
            run.ledger.write(run.state.step, [batch.consumed for batch in batches])
        agreed = agree(run, done)
        verdict = incidents.judge(run, agreed.loss, agreed.norm)
        settle(run, batches, done, verdict)
        step, last = run.state.step, run.state.step == stage.steps
        if last or agreed.stop:
            run.stop.heed()
        if (step % stage.log.every == 0 or last or agreed.stop) and not run.meters.empty:
            found = validating.validated(run) if last or validating.due(run) else {}
            run.watch.at(step, "log")
            report.log(run, done.stepped.rate, agreed.norm, found)
        if run.preview is not None and (step % stage.preview.every == 0 or last):
            run.watch.at(step, "preview")
            report.preview(run, run.preview)
        run.watch.at(step, "checkpoint")
        if stage.ema.snapshot_every and step % stage.ema.snapshot_every == 0:
            snapshots.save(run.folder, run.world, content(run, run.ema.power))
        if step % stage.checkpoint.every == 0 or last or agreed.stop or verdict.action == "roll back" or first(run):
            save(run)
        if agreed.stop:
            break
    run.checkpoints.wait(run.world)
    finished = run.state.step >= stage.steps
    why = "" if finished else run.stop.requested or "asked on another rank"
    if not finished:
        run.say(f"stopping at step {run.state.step} ({why}); saved, to be continued")
    return Outcome(step=run.state.step, samples_seen=run.state.samples_seen, finished=finished, why=why)


def agree(run: Run, done: Done) -> Agreed:
    """What all ranks must know of each other after a step; its one collective beside the engine's.

    Raises:
        RunError: on all ranks, when one of them could not write a checkpoint.
    """
    run.watch.at(run.state.step, "agreement")
    agreed = run.world.agree(
        done.loss, done.stepped.norm, stop=bool(run.stop.requested), failed=bool(run.checkpoints.failed)
    )
    if agreed.failed:
        run.checkpoints.wait(run.world)
    return agreed


def settle(run: Run, batches: Sequence[Micro], done: Done, verdict: Verdict) -> None:
    """Bring the run behind the step: with it, without it, or with the weights of an earlier one; collective."""
    if verdict.action == "skip":
        incidents.leave_out(run, batches, done, verdict)
    elif verdict.action == "roll back":
        incidents.go_back(run, batches, done, verdict)
    else:
        meter(run, batches, done)
        run.ema.update(run.engine.partition.masters, run.state.updates)
        run.curve = run.curve.after(verdict.loss, verdict.norm, run.stage.recovery.window)
        run.state = run.state.after(run.stage.batch.total)


def first(run: Run) -> bool:
    """Whether the run, without a checkpoint so far, needs one now, to go back to when a spike comes."""
    return first_save(run.curve, run.saved, run.stage.recovery)


def save(run: Run) -> None:
    """Have a checkpoint written beside the next steps."""
    if run.ledger is not None:
        run.ledger.sync()  # the checkpoint must not know of samples that the ledger could lose
    loss = sum(run.losses) / len(run.losses) if run.losses else None
    run.losses.clear()
    run.checkpoints.save(content(run, {**run.engine.moments(), **run.ema.tensors}, loss))
    run.saved = True


def content(run: Run, tensors: dict[str, tuple[torch.Tensor, ...]], loss: float | None = None) -> Content:
    """What is stored of the run as it stands now."""
    about = {"stage": run.stage.name, START: run.start, AVERAGES: json.dumps(run.ema.began), CURVE: run.curve.text()}
    return Content(
        partition=run.engine.partition,
        tensors=dict(tensors),
        state=run.state,
        identity=run.identity,
        about=about,
        loss=loss,
    )
