"""What a CPU saves when malloc keeps what is freed (bigdiff.runtime.allocator), on the quickstart's two networks.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Each turn is a process of its own, as
malloc's settings are a process's, and those with and without stand side by side; CPU time, so that others on the cores
disturb little.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[2]
TURNS = 9
WORK = """
import json, resource, sys, time, torch
from bigdiff.config.load import load_stage
from bigdiff.models.components import load_vae
from bigdiff.models.denoiser import build_denoiser
from bigdiff.models.encoders import moments
from bigdiff.runtime.allocator import keep_freed

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed()
vae = load_vae("bigdiff/quickstart/vae").to(memory_format=torch.channels_last)
pictures = torch.rand(64, 3, 64, 64)

def pass_of(side):
    unet = build_denoiser(load_stage(f"quickstart-{8 * side}px"), None)
    latents, timesteps, text = torch.rand(16, 16, side, side), torch.arange(16), torch.rand(16, 32, 64)
    def both():
        unet(latents, timesteps, text).square().mean().backward()
        unet.zero_grad()
    return both

@torch.inference_mode()
def encode():
    moments(vae, pictures)

found = {}
for name, work in {"32 px": pass_of(4), "64 px": pass_of(8), "encode": encode}.items():
    work(), work()
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    for _ in range(10):
        work()
    spent = (time.process_time() - began) / 10
    found[name] = [spent * 1000, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / 10]
print(json.dumps(found))
"""
ABOUT = {
    "32 px": "a pass forward and backward of 16 latents of 4 x 4",
    "64 px": "the same of 8 x 8",
    "encode": "64 pictures of 64 px through the VAE's encoder",
}
Found = dict[str, list[float]]  # work -> ms of CPU time, page faults


def turn(how: str) -> Found:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", WORK, how], cwd=ROOT, env=own, capture_output=True, check=True)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.bench
def test_what_keeping_freed_memory_saves() -> None:
    turns = [(turn("leave"), turn("keep")) for _ in range(TURNS)]
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join(lines(turns)) + "\n"
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-allocator.txt").write_text(text)
    sys.stdout.write(text)


def lines(turns: list[tuple[Found, Found]]) -> list[str]:
    load, cores = os.getloadavg()[0], os.cpu_count()
    head = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, torch {torch.__version__}, "
    found = [
        f"{head}{platform.machine()}, one thread of {cores} cores, load {load:.1f}; {TURNS} turns of each side by side",
        "the quickstart's networks; CPU time and page faults without and with malloc keeping freed memory, medians;",
        "the ratio of neighbours: median, quartiles in brackets",
        "",
    ]
    for name, about in ABOUT.items():
        plain, kept = (list(zip(*(pair[which][name] for pair in turns), strict=True)) for which in (0, 1))
        low, middle, high = statistics.quantiles(
            [after / before for before, after in zip(plain[0], kept[0], strict=True)], n=4
        )
        times, faults = ([statistics.median(side[which]) for side in (plain, kept)] for which in (0, 1))
        found.append(
            f"{about}: {times[0]:.1f} ms -> {times[1]:.1f} ms, x {middle:.3f} ({low:.3f} to {high:.3f}); "
            f"page faults {faults[0]:,.0f} -> {faults[1]:,.0f}"
        )
    return found
