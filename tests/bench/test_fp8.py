"""The loss of the quickstart's first stage with fp8 linear layers, beside bf16 and fp32, on the same batches and noise.

Products of fp8 are the CPU's own, from the same rounded operands as a GPU's; only how they are added up is another's.
"""

import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.models import agreement, linear
from bigdiff.quickstart import job
from bigdiff.quickstart.dataset import Options
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.versions import versions
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train import loop, trial
from bigdiff.train.run import Run
from bigdiff.train.setup import building

RESULTS = Path(__file__).parent / "results"
PICTURES, STEPS, MEAN = 4000, 600, 50  # losses are means over so many steps
# precision "auto" is fp32 here; of the other seed are initial weights, order and noise
WAYS = {
    "fp32": [],
    "bf16": ["engine.precision=bf16"],
    "fp8": ["engine.precision=bf16", "speed.linear=fp8"],
    "fp32, other seed": ["seed=1"],
}


@pytest.mark.bench
@pytest.mark.timeout(5400)
def test_loss_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]) -> None:
    monkeypatch.chdir(tmp_path)
    places = job.Places()
    job.images(places, Options(count=PICTURES, port=free_port()), job.Clock(), print)
    job.run(job.encode(places, 32), print)
    torch.set_num_threads(1)
    world = enter(600)
    try:
        found = {name: trained(name, options, world) for name, options in WAYS.items()}
    finally:
        leave()
    curves = {name: curve for name, (curve, _) in found.items()}
    assert all(math.isfinite(loss) and loss > 0 for curve in curves.values() for loss in curve)
    assert curves["fp8"] != curves["bf16"]
    text = "\n".join(lines(curves, {name: told for name, (_, told) in found.items() if told})) + "\n"
    print(text)
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-fp8.txt").write_text(text)


def trained(name: str, options: list[str], world: World) -> tuple[list[float], list[str]]:
    """The means of the loss, and how far its gradients are off before the first and after the last step."""
    settings = ["name=fp8", f"runs=runs/{name}", f"steps={STEPS}", "batch.micro=32", "log.every=1", "data.audit=false"]
    stage = load_stage("quickstart-32px", [*settings, f"checkpoint.every={STEPS}", *options])
    with building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 600)) as run:
        run.say = lambda _: None
        told = [f"before the first step: {off(run, world)}"]
        loop.train(run)
        told.append(f"after the last one: {off(run, world)}")
    (file,) = Path(stage.runs).rglob("metrics.jsonl")
    losses = [json.loads(line)["train/loss"] for line in file.read_text().splitlines()]
    assert len(losses) == STEPS
    means = [statistics.fmean(losses[first : first + MEAN]) for first in range(0, STEPS, MEAN)]
    return means, told if options and stage.seed == 0 else []


def off(run: Run, world: World) -> str:
    """Relative L2 distances of the gradients of one micro-batch from fp32's with the same weights."""
    denoiser = run.engine.module
    (sample,) = trial.samples(run.task.stage, denoiser, trial.shapes(run.task.stage, []), world.device)
    if denoiser.unet.dtype == torch.float32:
        return ""
    found, exact = agreement.gradients(denoiser, sample), agreement.exact(denoiser, sample)
    errors = agreement.distances(found, exact)
    names = dict(denoiser.named_modules())
    narrow = [
        errors[f"{name}.weight"]
        for name, module in names.items()
        if module in linear.linears(denoiser.unet) and f"{name}.weight" in errors
    ]
    return (
        f"loss {float(found.loss / exact.loss) - 1:+.1e}, gradients {agreement.apart(found, exact):.1%} in all, "
        f"median of {len(errors)} parameters {statistics.median(errors.values()):.1%}, "
        f"worst {max(errors.values()):.0%}; "
        f"of the {len(narrow)} linear layers' weights median {statistics.median(narrow):.1%}, worst {max(narrow):.0%}"
    )


def lines(curves: dict[str, list[float]], told: dict[str, list[str]]) -> list[str]:
    """The page of the result."""
    head = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, one thread of {os.cpu_count()} cores, "
    found = [
        head + ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"quickstart-32px, {PICTURES} pictures, {STEPS} steps of 32 images, one process, ZeRO-1; means of {MEAN}",
        "fp32, bf16 and fp8 (in bf16) have the same weights at first, the same batches, timesteps and noise",
        "",
        "steps".rjust(9) + "".join(f"{name:>18}" for name in curves) + f"{'bf16 / fp32':>15}{'fp8 / bf16':>15}",
    ]
    for row, losses in enumerate(zip(*curves.values(), strict=True)):
        by = dict(zip(curves, losses, strict=True))
        steps = f"{row * MEAN}-{(row + 1) * MEAN}".rjust(9)
        ratios = f"{by['bf16'] / by['fp32'] - 1:+15.2%}{by['fp8'] / by['bf16'] - 1:+15.2%}"
        found.append(steps + "".join(f"{loss:18.5f}" for loss in losses) + ratios)
    return [*found, "", "distance from fp32 with the same weights:"] + [
        f"{name}, {line}" for name, both in told.items() for line in both
    ]
