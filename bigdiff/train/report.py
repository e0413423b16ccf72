"""What a run tells of itself: a line for a person, points for TensorBoard and metrics.jsonl, pictures."""

import time
from collections.abc import Mapping
from typing import Final

import torch

from bigdiff.config import averages
from bigdiff.config.schema import Stage
from bigdiff.data.damage import budget_left, over_budget
from bigdiff.models.ema import distances, squares
from bigdiff.train.run import Drawer, Run
from bigdiff.train.usage import Usage

SLOW: Final = 1.25  # of the median forward time, above which the log names the process

# the first page of TensorBoard: is it learning, how fast, what is slow; tags as regular expressions
CHARTS: Final = {
    "loss": ("^train/loss$", "^validation/loss$", "^validation/loss_ema$"),
    "loss by timestep, 0 nearly without noise": ("^train/loss_t/",),
    "validation by timestep": ("^validation/loss_ema_t/",),
    "PSNR of reconstructions, dB": ("^train/psnr$", "^validation/psnr(_ema)?$"),
    "gradient norm": ("^train/grad_norm$",),
    "learning rate": ("^train/lr$",),
    "images per second": ("^speed/images_per_second$",),
    "share of the time that waits for data": ("^speed/data_wait_fraction$",),
    "share of the time in collectives": ("^speed/communication_fraction$",),
    "slowest process over the median": ("^speed/slowest_rank$",),
    "MFU: model FLOPs over the devices' stated peak": ("^speed/mfu$",),
    "hours left": ("^speed/hours_left$",),
    "money, so far and left": ("^cost/",),
    "distance of the averages": ("^distance/",),
}


def charts(stage: Stage, usage: Usage) -> dict[str, tuple[str, ...]]:
    """Those of CHARTS that this run will have points for: an empty one looks like something that went wrong."""
    absent = {
        "validation": not stage.validation.every or stage.model.autoencoder is not None,
        "MFU": not usage.peak,
        "money": not usage.price,
        "distance": not averages.names(stage.ema),
        "PSNR": stage.model.autoencoder is None,
        "loss by timestep": stage.model.autoencoder is not None,
    }
    unwanted = tuple(name for name, gone in absent.items() if gone)
    return {name: tags for name, tags in CHARTS.items() if not name.startswith(unwanted)}


def log(run: Run, rate: float, norm: float, validated: Mapping[str, float]) -> None:
    """A line for a person, a point per tag for TensorBoard and metrics.jsonl; collective."""
    reading, state = run.meters.take(run.engine.communication()), run.state
    run.losses.append(reading.loss)
    damaged, dead = substituted(run)
    apart = drift(run)
    skipped = state.step - state.updates
    slow, late = reading.slowest, reading.slowest.ratio > SLOW
    run.say(
        f"step {state.step:6d}/{run.stage.steps}  loss {reading.loss:.4f}  grad {norm:.3f}  lr {rate:.2e}  "
        f"{reading.images_per_second:.1f} images/s  data wait {reading.data_wait_fraction:.1%}"
        + heldout(validated)
        + (f"  damaged and substituted {damaged}" if damaged else "")
        + (f"  steps without effect {skipped}" if skipped else "")
        + (f"  rank {slow.rank} on {run.hosts[slow.rank]} is slow, {slow.ratio:.2f} of the median" if late else "")
    )
    if run.writer is None:
        return
    left = (run.stage.steps - state.step) * run.stage.batch.total / reading.images_per_second / 3600
    values = {
        "train/loss": reading.loss,
        "train/grad_norm": norm,
        "train/lr": rate,
        "train/samples_seen": float(state.samples_seen),
        "speed/images_per_second": reading.images_per_second,
        "speed/data_wait_fraction": reading.data_wait_fraction,
        "speed/slowest_rank": reading.slowest.ratio,
        "speed/hours_left": left,
        "memory/peak_gb": reading.peak_memory / 1e9,
        "speed/checkpoint_stall_seconds": run.checkpoints.stall_seconds(),
        "data/damaged": float(damaged),
        "data/tombstoned": float(dead),
        "recovery/skipped_steps": float(skipped),
    }
    if reading.communication_fraction is not None:
        values["speed/communication_fraction"] = reading.communication_fraction
    values |= run.usage.figures(reading.images_per_second, left, time.time())
    bins = enumerate(reading.loss_by_bin)
    values |= {f"train/loss_t/{number}": loss for number, loss in bins if loss is not None}
    values |= validated
    values |= {f"train/{name}": term for name, term in reading.terms.items()}
    values |= {f"distance/{name}": distance for name, distance in apart.items()}
    run.writer.scalars(state.step, state.samples_seen, values)


def heldout(found: Mapping[str, float]) -> str:
    """Of a line, what the held-out samples gave."""
    parts = []
    for suffix in ("", "_ema"):
        if (name := f"validation/loss{suffix}") in found:
            known = f"{found[name]:.4f} +- {found[f'validation/error{suffix}']:.4f}"
            parts.append(f"  validation{suffix.replace('_', ' ')} {known}")
        if (name := f"validation/psnr{suffix}") in found:
            parts.append(f" ({found[name]:.2f} dB)")
    return "".join(parts)


def drift(run: Run) -> dict[str, float]:
    """L2 distance of each average from the weights, relative to their norm; collective."""
    if not run.ema.tensors:
        return {}
    partition = run.engine.partition
    owned = [(piece.local, piece.local + piece.length) for piece in partition.pieces]
    sums = run.world.mean(squares(run.ema.tensors, partition.masters, owned))
    return distances(tuple(run.ema.tensors), sums)


def preview(run: Run, drawer: Drawer) -> None:
    """Draw the stage's pictures from the weights it names; collective."""
    for wanted in averages.several(run.stage.preview.weights):
        name = averages.held(wanted, tuple(run.ema.tensors), f"stage {run.stage.name}")
        weights = run.engine.partition.masters if name == averages.RAW else run.ema.tensors[name]
        picture = drawer.draw(run.engine.gather(weights))
        if run.writer is not None:
            tag = name if name == averages.RAW else wanted
            run.writer.image(f"preview/{tag}", picture, run.state.samples_seen)


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
