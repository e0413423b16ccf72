"""LayerNorm of the transformer blocks with one pass over memory backward: a part of `speed.transformer: fused`.

torch's kernels on CUDA read x and the gradient once for the gradient of x, and once more for those of weight and bias
(their source; not measured here). bigdiff.models.layer_norm_kernels reads them once.
"""

from functools import partial
from types import ModuleType
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.models import checked
from bigdiff.models.checked import Case
from bigdiff.models.components import AnyUNet
from bigdiff.runtime.world import World


def eager(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of the rows of x [..., C], by torch's operation."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def fused(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by the kernels, with a gradient."""
    found: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return found


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # noqa: ANN401
        given = x.contiguous()
        out: Tensor
        out, means, inverses = _kernels().forward(given, weight, bias, eps)
        ctx.save_for_backward(given, weight, means, inverses)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        x, weight, *kept = ctx.saved_tensors
        of_x, of_weight, of_bias = _kernels().backward(gradient.contiguous(), x, weight, *kept)
        return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _kernels() -> ModuleType:
    from bigdiff.models import layer_norm_kernels  # Triton comes with torch on Linux alone

    return layer_norm_kernels


def fuse(unet: AnyUNet, world: World) -> str:
    """Let the transformer blocks' LayerNorms be computed by the kernels, where they work on all ranks; collective.

    Gives a sentence where they do not, or "".
    """
    norms = _norms(unet)
    if not norms:
        return "speed.transformer=fused: this UNet has no LayerNorm in a transformer block"
    cases = [
        # more than a program's rows, and some that fill none
        Case(fused=partial(fused, eps), eager=partial(eager, eps), shapes=((3, 87, width), (width,), (width,)))
        for width, eps in sorted({(norm.normalized_shape[0], norm.eps) for norm in norms})
    ]
    problem = checked.problem(cases, unet.dtype, world)
    if problem:
        return f"speed.transformer=fused is left out for LayerNorm: {problem}"
    release(unet)
    for norm in norms:
        norm.forward = _Fused(norm)  # type: ignore[method-assign,assignment]
    return ""


def release(unet: AnyUNet) -> None:
    """Undo `fuse`."""
    for norm in _norms(unet):
        if isinstance(norm.forward, _Fused):
            before = norm.forward.before
            del norm.forward
            if before is not None:
                norm.forward = before  # type: ignore[method-assign]


class _Fused:
    """The forward pass of a LayerNorm by the kernels."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm
        # on a CPU in bf16 bigdiff.engine.precision has put its own in the class's place
        self.before = norm.__dict__.get("forward")

    def __call__(self, given: Tensor) -> Tensor:
        return fused(self.norm.eps, given, self.norm.weight, self.norm.bias)


def _norms(unet: AnyUNet) -> list[nn.LayerNorm]:
    """Of the transformer blocks, with weight and bias, over channels."""
    children = [one for block in unet.modules() if isinstance(block, BasicTransformerBlock) for one in block.children()]
    return [
        one
        for one in children
        if isinstance(one, nn.LayerNorm) and one.bias is not None and len(one.normalized_shape) == 1
    ]
