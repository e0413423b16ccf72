"""Images/s, MFU, memory and kernel times of a step: diffusers' script, bigdiff plain, and each of its switches.

    python tests/bench/step.py --pixels 256 512 --micro 16 64 [--write]     on a GPU
    python tests/bench/step.py --quick                                      a small UNet, on any machine

All are in one process and take turns: bigdiff's engines, DeepSpeed's and with an "overlapped" variant ours, whose
switches are thrown between their turns, and the script's networks beside them, each 16 bytes a weight and more (leave
some out of --variants for the largest batches). Weights are random, latents are noise that bigdiff reads from its own
set on disk. Each switch's gradients are first held against the plain network's; fp8's distance is told. What each
engine makes of them is held against torch's AdamW. A graph keeps its memory: of peaks beside one believe that of a
variant alone. --quick checks all of this but the rates.
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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from stepping import table
from stepping.kernels import profiled
from stepping.trainers import Ours, Trainers, sharding, trainers
from stepping.variants import OFF, QUICK, SCRIPT, VARIANTS

from bigdiff.models import agreement, flops, speed
from bigdiff.runtime import devices
from bigdiff.runtime.versions import versions
from bigdiff.runtime.world import World, enter, leave


@dataclass(kw_only=True)
class Row:
    """Of one variant."""

    rates: list[float] = field(default_factory=list)  # images/s, of each round
    agrees: str = ""  # what is wrong with its gradients
    engine: str = ""  # and with what its engine makes of them
    said: list[str] = field(default_factory=list)  # what could not be switched on
    start: float = 0.0  # seconds until it is on, compilation and comparison included
    peak: int | None = None  # bytes, without what the others keep
    waits: int | None = None  # synchronisations with the host in a step
    kernels: dict[str, float] = field(default_factory=dict)  # seconds a step, by class
    largest: list[tuple[str, str, float]] = field(default_factory=list)


def finished(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def compare(options: argparse.Namespace, pixels: int, micro: int, world: World) -> dict[str, Any]:
    """All variants by turns."""
    names = [name for name in VARIANTS if name in options.variants]
    rows = {name: Row() for name in names}
    with trainers(options, pixels, micro, world) as those:
        for kind, ours in those.ours.items():
            own = [name for name in names if name != SCRIPT and sharding(name) == kind]
            agree({name: rows[name] for name in own}, ours)  # before any step moves the weights
            for name in own if kind == "overlapped" else own[:1]:
                rows[name].engine = ours.engine_differs(VARIANTS[name])
        for _ in range(options.rounds):
            for name in names:
                measured(rows[name], name, those, options.steps, micro, world)
        for name in names:
            looked_into(rows[name], name, those, micro, world)
        stage, weights = ours.settings(), ours.run.engine.partition.total
    return {
        "pixels": stage.resolution,
        "micro": micro,
        "flops": flops.per_image(stage).needed,
        "weights": weights,
        "rows": {name: asdict(row) for name, row in rows.items()},
        "ended": "",
    }


def agree(rows: dict[str, Row], ours: Ours) -> None:
    """Hold the gradients of each variant against the plain network's."""
    sample = ours.sample(0)
    ours.switch(OFF, [])
    known = agreement.known(ours.denoiser, sample)
    for name, row in rows.items():
        began = time.perf_counter()
        row.said = ours.switch(VARIANTS[name], [sample])
        found = agreement.gradients(ours.denoiser, sample)
        if ours.run.task.stage.speed.linear == "plain":
            row.agrees = known.differs(found)
        else:  # which does not claim to agree
            row.said.append(f"its gradients are {agreement.apart(found, known.exact):.1%} off in all")
        row.start = time.perf_counter() - began
        print(f"  {name}: on after {row.start:.1f} s", flush=True)


def measured(row: Row, name: str, those: Trainers, steps: int, micro: int, world: World) -> None:
    """One turn: a step that nobody looks at, then `steps` with the clock running."""
    those.switch(name)
    those.turn(name, 1)
    finished(world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    those.turn(name, steps)
    finished(world)
    row.rates.append(steps * micro / (time.perf_counter() - began))
    if world.device.type == "cuda":
        row.peak = max(row.peak or 0, torch.cuda.max_memory_allocated() - those.others(name))


def looked_into(row: Row, name: str, those: Trainers, micro: int, world: World) -> None:
    """Kernel times and synchronisations of a step."""
    those.switch(name)
    those.turn(name, 1)
    finished(world)
    found = profiled(lambda: those.turn(name, 1), micro / statistics.median(row.rates), world.device)
    row.kernels, row.largest = found.seconds, list(found.largest)
    if world.device.type == "cuda":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            those.turn(name, 1)
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
    complete = (
        "complete: all took their turns, all but fp8 agree in every gradient, and each engine steps as AdamW does"
    )
    print("\n".join(lacking) if lacking else complete)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
