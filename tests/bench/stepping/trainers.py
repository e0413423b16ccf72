"""What takes turns in tests/bench/step.py: bigdiff's training by each of its engines, and diffusers' script."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from stepping import made, taken
from stepping.kernels import UPDATE
from stepping.script import Script
from stepping.variants import OVERLAPPED, SCRIPT, VARIANTS
from torch.profiler import record_function

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.models import agreement, checkpointing, speed
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import World
from bigdiff.train import loop, networks, trial
from bigdiff.train.inputs import Encoded
from bigdiff.train.run import Run
from bigdiff.train.setup import building


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

    def sample(self, number: int) -> agreement.Sample:
        """A micro-batch of noise; each number gives another."""
        stage = self.settings()
        stage, shapes = replace(stage, seed=stage.seed + number), trial.shapes(stage, [])
        (found,) = trial.samples(stage, self.denoiser, shapes, self.run.world.device)
        return found

    def engine_differs(self, options: list[str]) -> str:
        """What two steps of the engine with these switches do wrong, or ""; they move the weights."""
        self.switch(options, [])
        return taken.wrong(self.run.engine, [self.sample(1), self.sample(2)])

    def step(self) -> None:
        """As bigdiff.train.loop, without its log, previews and checkpoints."""
        self.before, _ = loop.advance(self.run, self.before)


def named(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, of which a profile says that it is the update."""

    def done(*arguments: Any) -> Any:
        with record_function(UPDATE):
            return work(*arguments)

    return done


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """All that take turns."""

    ours: dict[str, Ours]  # by engine.sharding
    script: Script | None
    keep: dict[str, int]  # bytes that each keeps between steps

    def of(self, name: str) -> Ours:
        """That a variant of bigdiff takes its turns with."""
        return self.ours[sharding(name)]

    def turn(self, name: str, steps: int) -> None:
        one = self.script if name == SCRIPT else self.of(name)
        assert one is not None, "the variants name the script"
        for _ in range(steps):
            one.step()

    def switch(self, name: str) -> None:
        if name != SCRIPT:
            self.of(name).switch(VARIANTS[name], [])

    def others(self, name: str) -> int:
        """Bytes that those keep whose turn it is not."""
        return sum(self.keep.values()) - self.keep[name if name == SCRIPT else sharding(name)]


def sharding(name: str) -> str:
    """Of a variant's engine."""
    return "overlapped" if OVERLAPPED in VARIANTS[name] else "deepspeed"


@contextmanager
def trainers(options: argparse.Namespace, pixels: int, micro: int, world: World) -> Iterator[Trainers]:
    """Those that the variants need."""
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
    ours, keep, script, between = {}, {}, None, held(world)
    with ExitStack() as closing:
        for kind in dict.fromkeys(map(sharding, [one for one in options.variants if one != SCRIPT] or [SCRIPT])):
            one = settings(f"engine.sharding={kind}", f"name={kind}")  # a run's folder of its own
            run = closing.enter_context(building(one, world, Stop(), Watchdog(world, options.folder, 600)))
            ours[kind] = Ours(run, settings)
            ours[kind].step()
            keep[kind], between = held(world) - between, held(world)
        if SCRIPT in options.variants:
            encoder = next(iter(ours.values())).denoiser.text_encoder
            script = Script(stage, encoder, world.device, run.engine.half)
            script.step()
            keep[SCRIPT] = held(world) - between
        yield Trainers(ours=ours, script=script, keep=keep)


def held(world: World) -> int:
    """Bytes on the device."""
    return torch.cuda.memory_allocated() if world.device.type == "cuda" else 0
