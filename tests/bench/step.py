"""Images/s, MFU, memory and kernel times of a step: diffusers' script, bigdiff plain, and each of its switches.

    python tests/bench/step.py --pixels 256 512 --micro 16 64 [--write]     on a GPU
    python tests/bench/step.py --quick                                      a small UNet, on any machine

All are in one process and take turns: one engine of bigdiff, whose switches are thrown between its turns, and the
script's networks beside it, 16 bytes a weight (leave it out of --variants for the largest batches). Weights are random,
latents are noise that bigdiff reads from its own set on disk. Each switch's gradients are first held against the plain
network's; fp8's distance is told. A graph keeps its memory: of peaks beside one believe that of a variant alone.
--quick checks all of this but the rates.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from stepping import made, table
from stepping.kernels import UPDATE, profiled
from stepping.script import Script
from stepping.variants import OFF, QUICK, SCRIPT, VARIANTS
from torch.profiler import record_function

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.models import agreement, checkpointing, flops, speed
from bigdiff.runtime import devices
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.versions import versions
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train import loop, networks, trial
from bigdiff.train.inputs import Encoded
from bigdiff.train.run import Run
from bigdiff.train.setup import building


@dataclass(kw_only=True)
class Row:
    """Of one variant."""

    rates: list[float] = field(default_factory=list)  # images/s, of each round
    agrees: str = ""  # what is wrong with its gradients
    said: list[str] = field(default_factory=list)  # what could not be switched on
    start: float = 0.0  # seconds until it is on, compilation and comparison included
    peak: int | None = None  # bytes, without what the others keep
    waits: int | None = None  # synchronisations with the host in a step
    kernels: dict[str, float] = field(default_factory=dict)  # seconds a step, by class
    largest: list[tuple[str, str, float]] = field(default_factory=list)


class Ours:
    """bigdiff's training between two log lines, of a stage whose switches can be thrown."""

    def __init__(self, run: Run, settings: Callable[..., Stage]) -> None:
        self.run, self.settings = run, settings
        self.before: loop.Pending | None = None
        self.denoiser: Any = run.engine.module
        found = run.task.captions  # type: ignore[attr-defined] # a diffusion stage's
        self.captions = found.captions if isinstance(found, Encoded) else found
        self.texts: dict[str, Any] = {}  # by speed.text_encoder, so that each is compiled once
        for part, name in ((run.engine, "step"), (run.ema, "update")):
            setattr(part, name, named(getattr(part, name)))

    def switch(self, options: list[str], samples: list[agreement.Sample]) -> list[str]:
        """Throw the switches; with samples a compiled UNet is tried on them. What could not be is told."""
        stage, unet = self.settings(*options), self.denoiser.unet
        speed.reset(self.denoiser)
        how = stage.speed.text_encoder
        if how not in self.texts:
            self.texts[how] = networks.encoded(stage, self.denoiser, self.captions, self.run.world)
        captions, said = self.texts[how]
        self.run.task = replace(self.run.task, stage=stage, captions=captions)
        checkpointing.recompute(unet, checkpointing.chosen(unet, stage.engine.gradient_checkpointing))
        return [*said, *speed.apply(self.denoiser, stage.speed, samples, self.run.world)]

    def step(self) -> None:
        """As bigdiff.train.loop, without its log, previews and checkpoints."""
        self.before, _ = loop.advance(self.run, self.before)


def named(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, of which a profile says that it is the update."""

    def done(*arguments: Any) -> Any:
        with record_function(UPDATE):
            return work(*arguments)

    return done


@contextmanager
def trainers(
    options: argparse.Namespace, pixels: int, micro: int, world: World
) -> Iterator[tuple[Ours, Script | None, dict[str, int]]]:
    """Both, and the bytes that each keeps between steps."""
    networks, latents = options.folder / "networks", options.folder / f"latents-{pixels}px"
    base = [*made.settings(networks, latents, options.folder / f"runs-{pixels}-{micro}", micro)]
    base += made.SMALL if options.quick else []

    @cache
    def settings(*more: str) -> Stage:
        return load_stage(f"{256 if options.quick else pixels}px", [*base, *more])

    stage = settings()
    if not networks.exists():
        made.write_networks(networks, options.quick)
    if not latents.exists():
        made.write_latents(latents, networks, stage.resolution, 1 if options.quick else 4)
    began = held(world)
    with building(stage, world, Stop(), Watchdog(world, options.folder, 600)) as run:
        ours = Ours(run, settings)
        ours.step()
        between = held(world)
        script = None
        if SCRIPT in options.variants:
            script = Script(stage, ours.denoiser.text_encoder, world.device, run.engine.half)
            script.step()
        yield ours, script, {SCRIPT: held(world) - between, "bigdiff": between - began}


def held(world: World) -> int:
    """Bytes on the device."""
    return torch.cuda.memory_allocated() if world.device.type == "cuda" else 0


def finished(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def compare(options: argparse.Namespace, pixels: int, micro: int, world: World) -> dict[str, Any]:
    """All variants by turns."""
    names = [name for name in VARIANTS if name in options.variants]
    rows = {name: Row() for name in names}
    with trainers(options, pixels, micro, world) as (ours, script, keep):
        stage = ours.settings()
        (sample,) = trial.samples(stage, ours.denoiser, trial.shapes(stage, []), world.device)
        ours.switch(OFF, [])
        known = agreement.known(ours.denoiser, sample)
        for name in [name for name in names if name != SCRIPT]:  # before any step moves the weights
            began = time.perf_counter()
            rows[name].said = ours.switch(VARIANTS[name], [sample])
            found = agreement.gradients(ours.denoiser, sample)
            if ours.run.task.stage.speed.linear == "plain":
                rows[name].agrees = known.differs(found)
            else:  # which does not claim to agree
                rows[name].said.append(f"its gradients are {agreement.apart(found, known.exact):.1%} off in all")
            rows[name].start = time.perf_counter() - began
            print(f"  {name}: on after {rows[name].start:.1f} s", flush=True)
        for _ in range(options.rounds):
            for name in names:
                measured(rows[name], name, ours, script, options.steps, micro, keep)
        for name in names:
            looked_into(rows[name], name, ours, script, micro)
        weights = ours.run.engine.partition.total
    return {
        "pixels": stage.resolution,
        "micro": micro,
        "flops": flops.per_image(stage).needed,
        "weights": weights,
        "rows": {name: asdict(row) for name, row in rows.items()},
        "ended": "",
    }


def turn(name: str, ours: Ours, script: Script | None, steps: int) -> None:
    for _ in range(steps):
        if name == SCRIPT:
            assert script is not None
            script.step()
        else:
            ours.step()


def measured(
    row: Row, name: str, ours: Ours, script: Script | None, steps: int, micro: int, keep: dict[str, int]
) -> None:
    """One turn: a step that nobody looks at, then `steps` with the clock running."""
    world = ours.run.world
    if name != SCRIPT:
        ours.switch(VARIANTS[name], [])
    turn(name, ours, script, 1)
    finished(world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    turn(name, ours, script, steps)
    finished(world)
    row.rates.append(steps * micro / (time.perf_counter() - began))
    if world.device.type == "cuda":
        others = keep["bigdiff" if name == SCRIPT else SCRIPT]
        row.peak = max(row.peak or 0, torch.cuda.max_memory_allocated() - others)


def looked_into(row: Row, name: str, ours: Ours, script: Script | None, micro: int) -> None:
    """Kernel times and synchronisations of a step."""
    device = ours.run.world.device
    if name != SCRIPT:
        ours.switch(VARIANTS[name], [])
    turn(name, ours, script, 1)
    finished(ours.run.world)
    found = profiled(lambda: turn(name, ours, script, 1), micro / statistics.median(row.rates), device)
    row.kernels, row.largest = found.seconds, list(found.largest)
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            turn(name, ours, script, 1)
            torch.cuda.set_sync_debug_mode("default")
        row.waits = sum("synchroniz" in str(one.message) for one in told)


def ceiling(device: torch.device) -> float:
    """FLOP/s of a large product of random matrices, in bf16 on a GPU: the best of ten."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 512
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else None) for _ in range(2))
    taken = []
    for _ in range(13):
        began = time.perf_counter()
        one @ other
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * side**3 / min(taken[3:])


def peak(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s by the data sheet, of a device that bigdiff.runtime.devices has."""
    found = devices.called(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if found is None else found.peak


def tried(options: argparse.Namespace, pixels: int, micro: int, world: World) -> dict[str, Any]:
    """As `compare`, or that it did not fit."""
    print(f"{pixels} px, {micro} images a step", flush=True)
    try:
        return compare(options, pixels, micro, world)
    except torch.OutOfMemoryError as error:  # an engine that stopped half-way has no further turn
        ended = f"out of memory ({str(error).splitlines()[0]})"
    torch.cuda.empty_cache()
    return {"pixels": pixels, "micro": micro, "flops": 0, "weights": 0, "rows": {}, "ended": ended}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", choices=(256, 512), default=[256, 512])
    parser.add_argument("--micro", type=int, nargs="+", default=[16, 32, 64], help="images a step, of one pass")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, of which the median counts")
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    parser.add_argument("--quick", action="store_true", help="a small UNet, and code that is traced but not compiled")
    parser.add_argument("--write", action="store_true", help="a dated .txt and .json in --results")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.quick:
        options.pixels, options.micro, options.rounds, options.steps = [64], [2], 2, 1
        options.variants = QUICK
    return options


def main() -> int:
    options = arguments()
    if options.quick:
        speed.BACKEND = "aot_eager"
    world = enter(600)
    device = world.device
    try:
        with tempfile.TemporaryDirectory() as folder:
            options.folder = Path(folder)
            runs = [tried(options, pixels, micro, world) for pixels in options.pixels for micro in options.micro]
    finally:
        leave()
    today, where = datetime.now(UTC).date().isoformat(), device.type
    if where == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    result = {
        "title": f"{today}, {where}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
        "notes": [
            f"medians of {options.rounds} turns of {options.steps} steps; one process, ZeRO-1, "
            f"{'bf16 over fp32' if device.type == 'cuda' else 'fp32'}; largest product of matrices "
            f"{ceiling(device) / 1e12:.3g} TFLOP/s",
            *(["--quick: a small UNet, not compiled: no rate here says anything"] if options.quick else []),
        ],
        "peak": peak(device),
        "ceiling": ceiling(device),
        "runs": runs,
    }
    text = "\n".join(table.lines(result, SCRIPT)) + "\n"
    print(text)
    if options.write:
        options.results.mkdir(exist_ok=True)
        (options.results / f"{today}-step.txt").write_text(text)
        (options.results / f"{today}-step.json").write_text(json.dumps(result, indent=1) + "\n")
    lacking = table.lacks(result)
    print("\n".join(lacking) if lacking else "complete: all took their turns, and all but fp8 agree in every gradient")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
