"""A small training under the engine and in plain torch; each rank runs it as a script and prints what came out as JSON.

course.py STAGE FOLDER CASE...: a case is "MODE key=value key=value" over the stage's file; `save` and `load` also take
"file=NAME" in FOLDER, and any "sub_group_size=N" for ZeRO-3.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.engine import deepspeed as engine_module
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.world import World, enter, leave

STEPS = 7
RESUMED = 3
PLANTS = {0: "nan gradient", 2: "inf gradient", 5: "nan loss"}  # at these steps, on the last rank, in its first pass
Plants = dict[int, str]


def network(seed: int) -> nn.Module:
    """77 parameters: nothing that divides evenly."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.SiLU(), nn.Linear(7, 3, bias=False))


def data(stage: Stage) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    total = STEPS * stage.batch.total
    return torch.randn(total, 5, generator=random), torch.randn(total, 3, generator=random)


def decay(updates: int) -> float:
    return min(0.9, (1 + updates) / (10 + updates))


def lists(tensors: dict[str, Tensor]) -> list[float]:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()]).tolist()


def plain(stage: Stage, plants: Plants) -> dict[str, Any]:
    """The same steps on whole batches, without those whose gradient is spoiled."""
    net, (x, y), total = network(0), data(stage), stage.batch.total
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=stage.optim.weight_decay)
    shadow = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    losses, norms, updates = [], [], 0
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, 1e-6 + (1 - 1e-6) * step / 2)
        rows = slice(step * total, (step + 1) * total)
        loss = (net(x[rows]) - y[rows]).pow(2).mean()
        losses.append(float(loss.detach()))
        if step in plants:
            continue
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), stage.optim.grad_clip or float("inf"))))
        optimizer.step()
        for name, weight in net.named_parameters():
            shadow[name] = decay(updates) * shadow[name] + (1 - decay(updates)) * weight.detach()
        updates += 1
    states = [optimizer.state[weight] for weight in net.parameters()]
    return {
        "losses": losses,
        "norms": norms,
        "weights": lists(dict(net.named_parameters())),
        "ema": lists(shadow),
        **{
            name: lists({str(at): state[name] for at, state in enumerate(states)}) for name in ("exp_avg", "exp_avg_sq")
        },
    }


class Course:
    """One case on this rank."""

    def __init__(self, stage: Stage, world: World, seed: int = 0) -> None:
        self.stage, self.world = stage, world
        net = network(seed)
        self.trained = dict(net.named_parameters())
        self.engine = Engine(net, self.trained, stage, world)
        self.shadow = [master.clone() for master in self.engine.partition.masters]
        self.updates = 0
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []

    def passes(self, step: int, plant: str) -> Tensor:
        """All of a step but the update, with `plant` spoiling the first pass of the last rank; this one's mean loss."""
        engine, micro, total = self.engine, self.stage.batch.micro, self.stage.batch.total
        x, y = data(self.stage)
        mean = torch.zeros(())
        for number in range(engine.accumulation):
            assert number == 0 or engine.step(step) is None
            at = step * total + (number * self.world.size + self.world.rank) * micro
            output = engine(x[at : at + micro].to(torch.bfloat16 if engine.half else torch.float32)).float()
            spoiled = number == 0 and self.world.rank == self.world.size - 1
            if plant.endswith("gradient") and spoiled:
                value = float(plant.split()[0])
                output.register_hook(lambda gradient, value=value: torch.full_like(gradient, value))
            loss = (output - y[at : at + micro]).pow(2).mean()
            mean += loss.detach() / engine.accumulation
            engine.backward(loss * float("nan") if plant == "nan loss" and spoiled else loss)
        return mean

    def step(self, step: int, plant: str) -> None:
        """One optimizer step."""
        mean = self.passes(step, plant)
        stepped = self.engine.step(step)
        assert stepped is not None
        self.losses.append(float(self.world.mean(mean)))
        self.rates.append(stepped.rate)
        self.norms.append(float(stepped.norm))
        if self.applied[-1]:
            torch._foreach_lerp_(self.shadow, list(self.engine.partition.masters), 1 - decay(self.updates))
            self.updates += 1

    def discard(self, plant: str) -> bool:
        """Passes whose gradients are let go; whether every bit stayed as it was."""
        before = self.bits()
        self.passes(0, plant)
        self.engine.discard()
        return all(map(torch.equal, self.bits(), before))

    @property
    def applied(self) -> list[bool]:
        """Of each step, whether it moved anything."""
        return [math.isfinite(norm) for norm in self.norms]

    def train(self, steps: range, plants: Plants, look: Callable[["Course"], None] = lambda course: None) -> "Course":
        for step in steps:
            self.step(step, plants.get(step, ""))
            look(self)
        return self

    def local(self) -> dict[str, Tensor]:
        """Copies of this rank's vectors."""
        parts = {"master": self.engine.partition.masters, **self.engine.moments()}
        return {name: torch.cat(tensors).clone() for name, tensors in parts.items()}

    def restore(self, local: dict[str, Tensor], updates: int) -> None:
        moments = {name: vector for name, vector in local.items() if name != "master"}
        self.engine.restore(local["master"], moments, updates)

    def result(self) -> dict[str, Any]:
        engine = self.engine
        covered = torch.zeros(engine.partition.length)
        for piece in engine.partition.pieces:
            covered[piece.local : piece.local + piece.length] += 1
        return {
            "losses": list(self.losses),
            "norms": [norm for norm in self.norms if math.isfinite(norm)],
            "rates": list(self.rates),
            "applied": self.applied,
            "weights": lists(engine.gather(engine.partition.masters)),
            "ema": lists(engine.gather(self.shadow)),
            **{name: lists(engine.gather(tensors)) for name, tensors in engine.moments().items()},
            "padding": float(torch.cat(engine.partition.masters)[covered == 0].abs().sum()),
            "twice": int((covered > 1).sum()),
        }

    def bits(self) -> list[Tensor]:
        """All that a dropped step must not touch: local vectors, Adam's counts, the network's own weights."""
        gathers = self.stage.engine.zero_stage == 3
        states = self.engine._adam.state.values()
        # before the first update there is none
        counts = [torch.tensor(sum(float(state["step"]) for state in states if state))]
        self.engine.settle()
        with deepspeed.zero.GatheredParameters(list(self.trained.values())) if gathers else nullcontext():
            weights = [weight.detach().clone() for weight in self.engine.module.parameters()]
        return [*self.local().values(), *counts, *weights]


def agree(stage: Stage, world: World, file: Path) -> dict[str, Any]:
    """All steps, and one let go; then back to the third in place and on again; then that in a new engine."""
    course, kept = Course(stage, world), []
    course.train(range(RESUMED), {})
    kept.append(course.local())
    course.train(range(RESUMED, STEPS), {})
    result = course.result()
    result["discarded"] = [course.discard(plant) for plant in ("", "inf gradient")]
    course.restore(kept[0], RESUMED)
    result["again"] = course.train(range(RESUMED, STEPS), {}).losses[STEPS:]
    other = Course(stage, world, seed=5)
    other.restore(kept[0], RESUMED)
    result["resumed"] = other.train(range(RESUMED, STEPS), {}).result()["losses"]
    result["resumed weights"] = lists(other.engine.gather(other.engine.partition.masters))
    return result


def skip(stage: Stage, world: World, file: Path) -> dict[str, Any]:
    """All steps with the plants; whether those left every bit as it was."""
    course = Course(stage, world)
    before, untouched = [course.bits()], []

    def look(course: Course) -> None:
        now = course.bits()
        same = len(now) == len(before[0]) and all(map(torch.equal, now, before[0]))
        untouched.append(same)
        before[0] = now

    course.train(range(STEPS), PLANTS, look)
    return {**course.result(), "untouched": untouched}


def save(stage: Stage, world: World, file: Path) -> dict[str, Any]:
    """All steps; the whole vectors after the third go to `file`."""
    course = Course(stage, world).train(range(RESUMED), {})
    parts = {"master": course.engine.partition.masters, **course.engine.moments()}
    whole = {name: torch.tensor(lists(course.engine.gather(tensors))) for name, tensors in parts.items()}
    if world.first:
        torch.save(whole, file)
    return course.train(range(RESUMED, STEPS), {}).result()


def load(stage: Stage, world: World, file: Path) -> dict[str, Any]:
    """On from the vectors in `file`, whoever wrote them."""
    course = Course(stage, world, seed=5)
    partition, whole = course.engine.partition, torch.load(file, weights_only=True)
    local = {name: torch.zeros(partition.length) for name in whole}
    for name, vector in local.items():
        for piece in partition.pieces:
            vector[piece.local : piece.local + piece.length] = whole[name][piece.start : piece.start + piece.length]
    course.restore(local, RESUMED)
    return course.train(range(RESUMED, STEPS), {}).result()


def own(stage: Stage, world: World, file: Path) -> dict[str, Any]:
    """What this rank owns of seeded weights; then counted-up weights restored, as its network has them."""
    course = Course(stage, world)
    engine, partition = course.engine, course.engine.partition
    told: dict[str, Any] = {
        "pieces": [[piece.local, piece.start, piece.length] for piece in partition.pieces],
        "local": torch.cat(partition.masters).tolist(),
        "shapes": [list(placed.shape) for placed in partition.layout],
        "masters": len(partition.masters),
        "fresh": lists(engine.gather(engine.moments()["exp_avg"])),
    }
    whole = torch.arange(partition.total) / 64 + 1 / 512  # bf16 rounds most of them
    local = torch.zeros(partition.length)
    for piece in partition.pieces:
        local[piece.local : piece.local + piece.length] = whole[piece.start : piece.start + piece.length]
    engine.restore(local, {"exp_avg": local + 1, "exp_avg_sq": local + 2}, 9)
    engine.settle()
    gathers = stage.engine.zero_stage == 3
    with deepspeed.zero.GatheredParameters(list(course.trained.values())) if gathers else nullcontext():
        told["network"] = lists(course.trained)
    told["counts"] = [float(state["step"]) for state in engine._adam.state.values()]
    return {**told, **{name: lists(engine.gather(tensors)) for name, tensors in engine.moments().items()}}


def main(config: str, folder: str, cases: Sequence[str]) -> None:
    world, told = enter(120), {}
    modes = {"agree": agree, "skip": skip, "save": save, "load": load, "own": own}
    for case in cases:
        mode, *settings = case.split()
        ours = {"file": "none", "sub_group_size": "1000000000"}
        ours |= dict(one.split("=") for one in settings if one.split("=")[0] in ours)
        engine_module.configuration = grouped(int(ours["sub_group_size"]))
        stage = load_stage(config, [one for one in settings if one.split("=")[0] not in ours])
        reference = plain(stage, PLANTS if mode == "skip" else {})
        told[case] = {**modes[mode](stage, world, Path(folder) / ours["file"]), "plain": reference}
    leave()
    print(json.dumps({"initial": lists(dict(network(0).named_parameters())), "cases": told}))


CONFIGURATION = engine_module.configuration


def grouped(size: int) -> Callable[..., dict[str, Any]]:
    """DeepSpeed's configuration with other ZeRO-3 sub-groups; networks of billions have several of the default size."""

    def configuration(stage: Stage, world_size: int, half: bool, elements: int) -> dict[str, Any]:
        config = CONFIGURATION(stage, world_size, half, elements)
        config["zero_optimization"]["sub_group_size"] = size
        return config

    return configuration


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
