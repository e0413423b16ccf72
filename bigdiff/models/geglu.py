"""GEGLU in one pass over memory: a part of `speed.transformer: fused`.

diffusers computes gelu of the gate and multiplies, each by itself, keeps both factors for the backward pass beside what
they were made of, and joins the halves of the gradient by a copy. bigdiff.models.geglu_kernels does it in one, and
keeps the projection's output alone.
"""

from types import MethodType, ModuleType
from typing import Any

from diffusers.models.activations import GEGLU
from torch import Tensor
from torch.nn import functional

from bigdiff.models import checked
from bigdiff.models.checked import Case
from bigdiff.models.components import AnyUNet
from bigdiff.models.pointwise import computed
from bigdiff.runtime.world import World


def eager(given: Tensor) -> Tensor:
    """[..., C] of the projection's output [..., 2 C], by torch's operations."""
    value, gate = given.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def fused(given: Tensor) -> Tensor:
    """The same by the kernels, with a gradient."""
    return computed(_kernels(), given)


def _kernels() -> ModuleType:
    from bigdiff.models import geglu_kernels  # Triton comes with torch on Linux alone

    return geglu_kernels


def fuse(unet: AnyUNet, world: World) -> str:
    """Let each GEGLU be computed by the kernels, where they work on all ranks; collective.

    Gives a sentence where they do not, or "".
    """
    layers = [module for module in unet.modules() if isinstance(module, GEGLU)]
    if not layers:
        return "speed.transformer=fused: this UNet has no GEGLU"
    widths = sorted({layer.proj.out_features for layer in layers})
    cases = [Case(fused=fused, eager=eager, shapes=((2, 13, width),)) for width in widths]
    problem = checked.problem(cases, unet.dtype, world)
    if problem:
        return f"speed.transformer=fused is left out for GEGLU: {problem}"
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return ""


def release(unet: AnyUNet) -> None:
    """Undo `fuse`."""
    for module in unet.modules():
        if isinstance(module, GEGLU):
            module.__dict__.pop("forward", None)


def _forward(layer: Any, hidden_states: Tensor) -> Tensor:  # noqa: ANN401 (a GEGLU, whose type mypy does not see)
    return fused(layer.proj(hidden_states))
