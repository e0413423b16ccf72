"""The loop, on one screen."""

import math

import torch

from bigdiff.checkpoint import store
from bigdiff.config.errors import RunError
from bigdiff.data.damage import budget_left, over_budget
from bigdiff.train.run import START, Outcome, Run
from bigdiff.train.step import optimizer_step


def train(run: Run) -> Outcome:
    """Train until the stage's last step or an agreed stop; both end in a checkpoint."""
    stage = run.stage
    while run.state.step < stage.steps:
        batches = next(run.batches)
        rate = optimizer_step(run, batches)
        if run.ledger is not None:
            run.ledger.write(run.state.step, [batch.consumed for batch in batches])
        run.ema.update(run.engine.partition.masters, run.state.step)
        run.state = run.state.after(stage.batch.total)
        step, last = run.state.step, run.state.step == stage.steps
        stopping = run.stop.agreed(run.world)
        if step % stage.log.every == 0 or last or stopping:
            log(run, rate)
        if run.preview is not None and (step % stage.preview.every == 0 or last):
            picture = run.preview.draw(run.engine.gather(run.ema.shadow))
            if run.writer is not None:
                run.writer.image("preview/ema", picture, run.state.samples_seen)
        if step % stage.checkpoint.every == 0 or last or stopping:
            save(run)
        if stopping and not last:
            run.say(
                f"stopping at step {step} ({run.stop.requested or 'asked on another rank'}); saved, to be continued"
            )
            break
    finished = run.state.step >= stage.steps
    return Outcome(step=run.state.step, samples_seen=run.state.samples_seen, finished=finished)


def log(run: Run, rate: float) -> None:
    """A line for a person, a point per tag for TensorBoard and metrics.jsonl; collective.

    Raises:
        RunError: when the loss is not finite.
    """
    reading, norm, state = run.meters.take(), float(run.engine.grad_norm()), run.state
    damaged, dead = substituted(run)
    if not math.isfinite(reading.loss):
        raise RunError(
            f"the loss at step {state.step} is {reading.loss}: start again to go on from the last checkpoint, "
            f"with a lower optim.lr or engine.precision=fp32 if it comes back"
        )
    run.say(
        f"step {state.step:6d}/{run.stage.steps}  loss {reading.loss:.4f}  grad {norm:.3f}  lr {rate:.2e}  "
        f"{reading.images_per_second:.1f} images/s  data wait {reading.data_wait_fraction:.1%}"
        + (f"  damaged and substituted {damaged}" if damaged else "")
    )
    if run.writer is None:
        return
    values = {
        "train/loss": reading.loss,
        "train/grad_norm": norm,
        "train/lr": rate,
        "train/samples_seen": float(state.samples_seen),
        "speed/images_per_second": reading.images_per_second,
        "speed/data_wait_fraction": reading.data_wait_fraction,
        "data/damaged": float(damaged),
        "data/tombstoned": float(dead),
    }
    bins = enumerate(reading.loss_by_bin)
    values |= {f"train/loss_t/{number}": loss for number, loss in bins if loss is not None}
    run.writer.scalars(state.step, state.samples_seen, values)


def substituted(run: Run) -> tuple[int, int]:
    """Samples that were replaced since this start, on all processes: (damaged, taken down); collective.

    Raises:
        RunError: on all processes alike, when more are damaged than the budget allows.
    """
    counts = torch.tensor([run.quarantine.damaged, run.quarantine.dead], dtype=torch.float32)
    damaged, dead = (int(count) for count in (run.world.mean(counts) * run.world.size).round().tolist())
    seen = run.state.samples_seen - run.began
    if not budget_left(seen, damaged, run.stage.data.damage_budget):
        raise over_budget(seen, damaged, run.stage.data.damage_budget)
    return damaged, dead


def save(run: Run) -> None:
    """Write a checkpoint; collective."""
    if run.ledger is not None:
        run.ledger.sync()  # the checkpoint must not know of samples that the ledger could lose
    tensors = {**run.engine.moments(), store.EMA: run.ema.shadow}
    content = store.Content(
        partition=run.engine.partition,
        tensors=tensors,
        state=run.state,
        identity=run.identity,
        about={"stage": run.stage.name, START: run.start},
    )
    store.save(run.folder, run.world, content, run.stage.checkpoint.keep)
