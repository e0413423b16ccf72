"""What an engine makes of a network's gradients, beside torch's own AdamW: some steps of it, seen from both ends.

Adam's first updates are as long as the learning rate whatever the gradient is, so that one which is nothing but
rounding moves its weights as far as any. Therefore the way is held in two parts: what reached the optimizer, as its
first moment has it, against the network's own gradients; and the masters against AdamW on what reached it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigdiff.config.schema import Optim
from bigdiff.engine.deepspeed import Engine
from bigdiff.models import agreement
from bigdiff.models.agreement import TOLERANCE, Pass, Sample
from bigdiff.models.denoiser import Denoiser

Named = dict[str, Tensor]
RATE: Final = 1e-3  # so high that the rounding of a weight's place hides little of its way


def wrong(engine: Engine, samples: Sequence[Sample]) -> str:
    """What the engine does wrong in a step on each of `samples`, this rank's, with its optimizer afresh; "" if nothing.

    Collective. Its weights and its optimizer have made the steps then; it takes some seven times the fp32 weights.
    """
    optim = engine.optim
    try:
        engine.optim = replace(optim, lr=RATE, warmup_steps=0, schedule="constant")
        return differing(engine, engine.optim, samples)
    finally:
        engine.optim = optim


def differing(engine: Engine, optim: Optim, samples: Sequence[Sample]) -> str:
    """As `wrong`, with the rate that there is."""
    denoiser = engine.module
    assert isinstance(denoiser, Denoiser) and engine.accumulation == 1, "a diffusion stage, a pass a step"
    engine.restore(torch.cat(engine.partition.masters).clone(), None, 0)
    weights = {name: nn.Parameter(one) for name, one in masters(engine).items()}
    adam = torch.optim.AdamW(
        weights.values(),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        foreach=False,
    )
    for number, sample in enumerate(samples):
        before, moment = masters(engine), first_moment(engine)
        engine.settle()
        plain = averaged(agreement.gradients(denoiser, sample))
        norm = math.hypot(*(float(one.norm()) for one in plain.gradients.values()))
        engine.backward(agreement.squared_error(engine(*agreement.inputs(denoiser, sample)), sample.target))
        stepped = engine.step(number)
        assert stepped is not None, "one pass a step"
        for name, one in first_moment(engine).items():
            reached = (one.double() - optim.beta1 * moment[name].double()) / (1 - optim.beta1)
            weights[name].grad = reached.float()
        adam.step()
        found = (
            unequal(plain, float(stepped.norm), weights, optim.grad_clip, tolerance := TOLERANCE[denoiser.unet.dtype]),
            far({"all gradients": abs(float(stepped.norm) / norm - 1)}, tolerance, "norms"),
            far(moved(weights, masters(engine), before), TOLERANCE[torch.float32], "updates"),
            unlike(engine, denoiser),
        )
        if any(found):
            return f"step {number} of its engine: {'; '.join(filter(None, found))}"
    return ""


def unequal(plain: Pass, norm: float, weights: dict[str, nn.Parameter], clip: float, tolerance: float) -> str:
    """A sentence on the gradients that did not reach the optimizer as they are when clipped by the engine's norm."""
    factor = min(1.0, clip / norm) if clip else 1.0
    expected = Pass(loss=plain.loss, gradients={name: factor * one for name, one in plain.gradients.items()})
    reached = Pass(loss=plain.loss, gradients={name: one.grad for name, one in weights.items() if one.grad is not None})
    return far(agreement.distances(reached, expected), tolerance, "gradients")


def masters(engine: Engine) -> Named:
    """fp32, whole, a copy."""
    return engine.gather(engine.partition.masters)


def first_moment(engine: Engine) -> Named:
    """The same of Adam's."""
    return engine.gather(engine.moments()["exp_avg"])


def averaged(one: Pass) -> Pass:
    """Over the ranks, in fp32."""
    gradients = {name: gradient.float() for name, gradient in one.gradients.items()}
    if dist.get_world_size() > 1:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return Pass(loss=one.loss, gradients=gradients)


def moved(expected: dict[str, nn.Parameter], found: Named, before: Named) -> dict[str, float]:
    """How far each weight is from where it should be, relative to its way there, but for the rounding of its place."""
    rounding = 2 * torch.finfo(torch.float32).eps
    told = {}
    for name, one in expected.items():
        off = float((found[name] - one.detach()).norm()) - rounding * float(one.detach().norm())
        way = float((one.detach() - before[name]).norm())
        if off <= 0:
            told[name] = 0.0
        else:  # a NaN, too
            told[name] = off / way if way else math.inf
    return told


def far(errors: dict[str, float], tolerance: float, what: str) -> str:
    """A sentence on those beyond the tolerance; a NaN is."""
    beyond = {
        name: math.inf if math.isnan(error) else error for name, error in errors.items() if not error <= tolerance
    }
    if not beyond:
        return ""
    worst = max(beyond, key=beyond.__getitem__)
    return f"of {len(errors)} {what} {len(beyond)} are wrong, that of {worst} most, by {beyond[worst]:.2g}, relatively"


def unlike(engine: Engine, denoiser: Denoiser) -> str:
    """Whether the network computes with other weights than the masters, rounded."""
    engine.settle()
    whole = masters(engine)
    other = [name for name, one in denoiser.trained().items() if not torch.equal(one.detach(), whole[name].to(one))]
    return f"{len(other)} of the network's weights are not their masters, such as {other[0]}" if other else ""
