"""Kernels of our own are held against torch's operations on the run's devices before it relies on them.

A kernel that compiles can still be wrong on a device that no test has seen. So a run tries each kernel of its network
on small random tensors first, output and all gradients, and keeps torch's where one fails or does not run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from bigdiff.runtime.world import World

CLOSE: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # relative, in the L2 norm
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kernel with its gradient, the same by torch's operations, and the shapes of the tensors that both take."""

    fused: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    shapes: Shapes
    close: tuple[float, ...] = ()  # what the output and each gradient may be off, where that is not CLOSE


def problem(cases: Iterable[Case], kind: torch.dtype, world: World) -> str:
    """What is wrong with the kernels, in tensors of `kind`, on the first rank that finds a fault, or ""; collective."""
    return anywhere(alone(cases, world.device, kind), world)


def anywhere(problem: str, world: World) -> str:
    """The problem of the first rank that has one, or ""; collective."""
    return next((one for one in world.gather(problem) if one), "")


def located(problem: str, world: World) -> str:
    """The same behind a colon, for the end of a sentence, with the rank where there are several; collective."""
    told = world.gather(problem)
    rank = next((number for number, one in enumerate(told) if one), None)
    if rank is None:
        return ""
    return f"{f' on rank {rank}' if world.size > 1 else ''}: {told[rank]}"


def alone(cases: Iterable[Case], device: torch.device, kind: torch.dtype) -> str:
    """The same of this process by itself."""
    try:
        for case in cases:
            if not _agrees(case, device, kind):
                return f"on {device.type} in {str(kind).removeprefix('torch.')} it computes something else"
    except Exception as error:  # noqa: BLE001 (of a compiler, a driver, an import: the run goes on without)
        return f"on {device.type} it does not run ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def _agrees(case: Case, device: torch.device, kind: torch.dtype) -> bool:
    """Whether output and gradients are those of fp32 operations on the same rounded tensors, to rounding."""
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=random).to(device, kind) for shape in case.shapes]
    wide = [one.float() for one in given]
    behind = torch.randn(case.eager(*wide).shape, generator=random).to(device, kind)
    known, found = gradients(case.eager, wide, behind.float()), gradients(case.fused, given, behind)
    close = case.close or (CLOSE[kind],) * len(known)
    return all(
        bool((one.float() - other).norm() <= most * other.norm())
        for one, other, most in zip(found, known, close, strict=True)
    )


def gradients(how: Callable[..., Tensor], given: Iterable[Tensor], behind: Tensor) -> list[Tensor]:
    """The output of `how`, then the gradient of each tensor that it is given, of the output's, `behind`."""
    inputs = [one.detach().requires_grad_() for one in given]
    out = how(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, behind)]
