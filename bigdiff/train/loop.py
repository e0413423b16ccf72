"""The loop, on one screen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigdiff.checkpoint import snapshots
from bigdiff.checkpoint.content import AVERAGES, Content
from bigdiff.runtime.world import Agreed, Asked
from bigdiff.train import incidents, report, validating
from bigdiff.train.recovery import Verdict, first_save
from bigdiff.train.run import CURVE, START, Outcome, Run
from bigdiff.train.step import Done, forward_backward, meter, update
from bigdiff.train.task import Micro


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A step that is done, but for what the ranks make of it."""

    batches: Sequence[Micro]
    done: Done
    asked: Asked


def train(run: Run) -> Outcome:
    """Train until the stage's last step or an agreed stop; both end in a checkpoint."""
    run.engine.communication()  # what was sent before is not the first reading's
    before: Pending | None = None
    stop = False
    while run.state.step < run.stage.steps and not stop:
        before, stop = advance(run, before)
        if stop or looked_at(run, run.state.step + 1):
            stop = look(run, before, stop)
            before = None
    run.checkpoints.wait(run.world)
    finished = run.state.step >= run.stage.steps
    why = "" if finished else run.stop.requested or "asked on another rank"
    if not finished:
        run.say(f"stopping at step {run.state.step} ({why}); saved, to be continued")
    return Outcome(step=run.state.step, samples_seen=run.state.samples_seen, finished=finished, why=why)


def advance(run: Run, before: Pending | None) -> tuple[Pending, bool]:
    """One step; and whether a stop was asked for at the step before.

    On that the ranks agree here, while the device has this one's passes to do, and before its update: so the host does
    not wait for the device, which never runs dry, and what becomes of a step is as if they had agreed on it at once.
    `run.state` is behind the last step that they have agreed on.
    """
    step, stop = run.state.step + (before is not None), False
    run.watch.at(step, "data")
    batches = next(run.batches)
    run.watch.at(step, "forward and backward")
    losses = forward_backward(run, batches, step)
    if before is not None:
        agreed, verdict = conclude(run, before)
        stop, back = agreed.stop, verdict.action == "roll back"
        if back:
            run.engine.discard()  # gradients of weights that go back
        settle(run, before.batches, before.done, verdict)
        if back:
            save(run)
            losses = forward_backward(run, batches, step)
    run.watch.at(step, "update")
    done = update(run, losses, step)
    if run.ledger is not None:
        run.ledger.write(step, [batch.consumed for batch in batches])
    return Pending(batches=batches, done=done, asked=ask(run, done)), stop


def looked_at(run: Run, step: int) -> bool:
    """Whether something is done with the run as it stands behind `step` steps, one more than are settled, or may be."""
    stage = run.stage
    every = [stage.log.every, stage.checkpoint.every, stage.ema.snapshot_every]
    if run.preview is not None:
        every.append(stage.preview.every)
    due = any(one and step % one == 0 for one in every)
    return due or step == stage.steps or first_save(run.curve, run.saved, stage.recovery, ahead=1)


def look(run: Run, last: Pending, stop: bool) -> bool:
    """Agree on the `last` step at once; log, draw and save what is due behind it. Whether a stop is asked for."""
    stage = run.stage
    agreed, verdict = conclude(run, last)
    settle(run, last.batches, last.done, verdict)
    stop = stop or agreed.stop
    step, end = run.state.step, run.state.step == stage.steps
    if end or stop:
        run.stop.heed()
    if (step % stage.log.every == 0 or end or stop) and not run.meters.empty:
        found = validating.validated(run) if end or validating.due(run) else {}
        run.watch.at(step, "log")
        report.log(run, last.done.stepped.rate, agreed.norm, found)
    if run.preview is not None and (step % stage.preview.every == 0 or end):
        run.watch.at(step, "preview")
        report.preview(run, run.preview)
    run.watch.at(step, "checkpoint")
    if stage.ema.snapshot_every and step % stage.ema.snapshot_every == 0:
        snapshots.save(run.folder, run.world, content(run, run.ema.power))
    if step % stage.checkpoint.every == 0 or end or stop or verdict.action == "roll back" or first(run):
        save(run)
    return stop


def ask(run: Run, done: Done) -> Asked:
    """Tell the other ranks what they must know of a step; its one collective beside the engine's."""
    stop, failed = bool(run.stop.requested), bool(run.checkpoints.failed)
    return run.world.ask(done.loss, done.stepped.norm, stop=stop, failed=failed)


def conclude(run: Run, last: Pending) -> tuple[Agreed, Verdict]:
    """What the ranks agree on about the step behind `run.state`, and what becomes of it.

    Raises:
        RunError: on all ranks, when one of them could not write a checkpoint.
    """
    run.watch.at(run.state.step, "agreement")
    agreed = last.asked.agreed()
    if agreed.failed:
        run.checkpoints.wait(run.world)
    return agreed, incidents.judge(run, agreed.loss, agreed.norm)


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
