"""Steps that went wrong: left out or taken back, written down, and told to a person.

`recovery.jsonl` in the run's folder has a line for each, as it happened; what a crash undid stays in it. What the
weights have really seen stands in the checkpoint's state and in the ledger.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bigdiff.checkpoint import snapshots
from bigdiff.config.errors import LastingError
from bigdiff.data import naming
from bigdiff.runtime.files import sync
from bigdiff.train import recovery, resuming
from bigdiff.train.recovery import NONFINITE, Curve, Seen, Verdict
from bigdiff.train.run import CURVE, Run
from bigdiff.train.step import Done
from bigdiff.train.task import Micro

FILE: Final = "recovery.jsonl"
NAMED: Final = 64  # samples that one rank names of one step
LARGEST: Final = 4  # that it names of a spike, which no sample can be blamed for with certainty


def judge(run: Run, loss: float, norm: float) -> Verdict:
    """What becomes of the step just done, of this mean loss over all processes and this norm of the gradient."""
    if recovery.another_regime(run.stage, run.state.step):
        run.curve = Curve()
    seen = Seen(loss=loss, norm=norm, applied=math.isfinite(norm))
    return recovery.judge(run.curve, run.state, seen, run.stage.recovery)


def leave_out(run: Run, batches: Sequence[Micro], done: Done, verdict: Verdict) -> None:
    """Go on without the step, which moved no weights; collective.

    Raises:
        LastingError: on all ranks, when the budget is used up.
    """
    step = run.state.step
    state = run.state.without_update(run.stage.batch.total, verdict.reason)
    problem = recovery.over_budget(state, run.stage.steps, run.stage.recovery)
    tell(run, verdict, suspects(run, batches, done, verdict), step, problem)
    if run.ledger is not None:
        run.ledger.skip(step, step + 1, verdict.reason)
    run.state = state


def go_back(run: Run, batches: Sequence[Micro], done: Done, verdict: Verdict) -> None:
    """Take weights, optimizer, averages and curve from the newest good checkpoint; go on behind the step; collective.

    The data goes on: what was read since the checkpoint is not read again, and nothing of it stays in the weights.

    Raises:
        LastingError: on all ranks, when there is no checkpoint yet, or the budget is used up.
    """
    stage, step = run.stage, run.state.step
    samples = suspects(run, batches, done, verdict)
    run.watch.at(step, "rollback")
    run.checkpoints.wait(run.world)  # the newest one may still be written
    saved = resuming.newest(stage, run.world, run.engine, run.ema)
    if saved is None:
        problem = "there is no checkpoint to go back to: set checkpoint.every or optim.lr lower"
        tell(run, verdict, samples, step, problem)
        raise AssertionError("a problem ends the run")
    state = run.state.after(stage.batch.total).rolled_back(saved.state, verdict.reason)
    tell(run, verdict, samples, saved.state.step, recovery.over_budget(state, stage.steps, stage.recovery))
    if run.ledger is not None:
        run.ledger.skip(saved.state.step, step + 1, verdict.reason)
    if run.world.first:
        snapshots.forget(run.folder, saved.state.step)
    resuming.put_back(stage, saved, run.engine, run.ema)
    run.curve = Curve.parse(saved.about.get(CURVE, ""), stage.recovery.window)
    run.losses.clear()
    run.state = state


def suspects(run: Run, batches: Sequence[Micro], done: Done, verdict: Verdict) -> list[dict[str, Any]]:
    """Of all ranks: the samples whose own loss is not finite, or all where only the gradient was not; collective.

    No more than NAMED of a rank. Of a spike the largest losses, the largest first, no more than NAMED in all.
    """
    pairs: list[tuple[float, int]] = []
    for batch, losses in zip(batches, done.losses, strict=True):
        own = list(zip(losses.per_sample.tolist(), batch.positions.tolist(), strict=True))
        if verdict.reason == f"{NONFINITE} loss":
            broken = [pair for pair in own if not math.isfinite(pair[0])]
            own = broken or ([] if losses.total.isfinite() else own)
        pairs += own
    if not verdict.reason.startswith(NONFINITE):
        pairs = sorted(pairs, reverse=True)[:LARGEST]
    pairs = pairs[:NAMED]
    consumed = [batch.consumed for batch in batches]
    names = naming.named(run.course, run.sets, consumed, [position for _, position in pairs])
    mine = [
        {"rank": run.world.rank, "loss": loss if math.isfinite(loss) else str(loss), **asdict(name)}
        for (loss, _), name in zip(pairs, names, strict=True)
    ]
    found = [one for theirs in run.world.gather(mine) for one in theirs]
    if not verdict.reason.startswith(NONFINITE):  # whatever rank had the largest is named first, to a person, too
        found = sorted(found, key=lambda one: -float(one["loss"]))[:NAMED]
    return found


def tell(run: Run, verdict: Verdict, samples: list[dict[str, Any]], begin: int, problem: str) -> None:
    """Say what becomes of steps from `begin` on, and append it to recovery.jsonl, on the disk when this returns.

    Raises:
        LastingError: on all ranks, with the `problem` that ends the run, if there is one.
    """
    step = run.state.step
    action = "end" if problem else verdict.action
    if run.world.first:
        line = {
            "time": round(time.time(), 3),
            "start": run.start,
            "step": step,
            "action": action,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "window": [begin, step + 1],
            "samples": samples,
        }
        _append(run.folder / FILE, line)
    what = f"step {step}: {verdict.reason} ({verdict.detail})"
    if problem:
        raise LastingError(f"{what}; {problem}; {run.folder / FILE} names the samples")
    keys = ", ".join(one["key"] for one in samples[:4]) + (", ..." if len(samples) > 4 else "")
    then = "it moved no weights" if action == "skip" else f"back to the weights of step {begin}, and on with the data"
    run.say(f"{what}; {then}; samples {keys}, see {FILE}")


def _append(file: Path, line: dict[str, Any]) -> None:
    new = not file.exists()
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    if new:
        sync(file.parent)
