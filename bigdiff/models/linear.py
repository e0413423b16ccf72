"""Linear layers of a UNet's transformer blocks in fp8: `speed.linear`, an experiment that moves results.

As torchao's tensorwise recipe (Float8LinearConfig): inputs and weights in e4m3, gradients in e5m2, one scale for each
tensor from its own largest value, and all three products of a layer in fp8. Weights, their gradients and what goes from
layer to layer stay as they are. e4m3 rounds by up to 1/16, e5m2 by 1/8, where bf16 rounds by 1/256.
"""

import math
from types import MethodType
from typing import Any, Final

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.models import checked
from bigdiff.models.checked import Case
from bigdiff.models.components import AnyUNet
from bigdiff.runtime.world import World

E4M3: Final = torch.float8_e4m3fn
E5M2: Final = torch.float8_e5m2
SIDE: Final = 16  # what a product's sides must be multiples of
CAPABILITY: Final = (8, 9)  # the first GPUs with products of fp8
# A layer's products take 6 in out FLOPs a row, half of that time is gained; its casts move 7 (in + out) bytes. What one
# H200 has shown, 790 TFLOP/s and 4.3 TB/s, makes of it: it pays where in out / (in + out) is more than
_PAYS: Final = 7 * 790 / (3 * 4.3)
_TINY: Final = 1e-30  # a scale for it is finite in bf16
# Of a trial with normal numbers, relative: twice what rounding gives (0.038 and 0.061 on a CPU), and bf16's own
_CLOSE: Final = (0.08, 0.12, 0.12, 0.01)  # of the output, of the gradients of input, weight and bias


def scaled(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in `kind`, and the scalar, fp32, by which that must be multiplied.

    A power of two, so that nothing but the cast rounds, and none too large: a cast beyond the largest number of `kind`
    would not saturate. What is not finite in `x` makes all of it not finite, and is found as any such gradient is.
    """
    largest = torch.linalg.vector_norm(x, math.inf).float().clamp(min=_TINY)
    scale = torch.exp2(torch.floor(torch.log2(torch.finfo(kind).max / largest)))
    return _cast(x, scale, kind), scale.reciprocal()


def _cast(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    return (x * scale.to(x.dtype)).to(kind).contiguous()  # as cuBLAS takes it, whatever view x is


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., in], [out, in] and [out] -> [..., out], as functional.linear, with a gradient."""
    found: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return found.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        (rounded, of_x), (narrow, of_weight) = scaled(x, E4M3), scaled(weight, E4M3)
        ctx.save_for_backward(rounded, of_x, weight, of_weight)  # a weight is kept anyway, and cast again
        ctx.biased = bias is not None
        out = _product(rounded, narrow, (of_x, of_weight), x.dtype, fast=True)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        rounded, of_x, weight, of_weight = ctx.saved_tensors
        narrow, scale = scaled(gradient, E5M2)
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            again = _turned(_cast(weight, of_weight.reciprocal(), E4M3))
            by_x = _product(narrow, again, (scale, of_weight), gradient.dtype)
        if ctx.needs_input_grad[1]:
            by_weight = _product(_turned(narrow), _turned(rounded), (scale, of_x), gradient.dtype)
        return by_x, by_weight, gradient.sum(0) if ctx.biased else None


def _product(
    one: Tensor, other: Tensor, scales: tuple[Tensor, Tensor], kind: torch.dtype, *, fast: bool = False
) -> Tensor:
    """[M, K] by [N, K] -> [M, N]; K is filled up with zeros. `fast` adds up in fewer bits, as torchao lets outputs."""
    lacking = -one.shape[1] % SIDE
    if lacking:
        one, other = (functional.pad(each.view(torch.uint8), (0, lacking)).view(each.dtype) for each in (one, other))
    found: Tensor = torch._scaled_mm(
        one, other.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=kind, use_fast_accum=fast
    )
    return found


def _turned(one: Tensor) -> Tensor:
    return one.t().contiguous()


def narrow(unet: AnyUNet, which: str, world: World) -> str:
    """Compute linear layers of `unet` in fp8, all ("fp8") or those that pay ("fp8_wide"); collective.

    Gives a sentence where no layer is, or fewer than were asked for, or "".
    """
    layers = linears(unet)
    found = [layer for layer in layers if fits(layer) and (which == "fp8" or pays(layer))]
    problem = checked.anywhere(_problem(found, unet.device, unet.dtype), world)
    if problem:
        return f"speed.linear={which} is left out: {problem}"
    if not found:
        return f"speed.linear={which} has no effect: none of {len(layers)} linear layers in transformer blocks fits it"
    for layer in found:
        layer.narrow_from = unet.dtype
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    lacking = sum(not fits(layer) for layer in layers)
    if lacking and which == "fp8":
        return f"speed.linear={which}: {lacking} of {len(layers)} layers have sides that are no multiples of {SIDE}"
    return ""


def release(unet: AnyUNet) -> None:
    """Undo `narrow`."""
    for layer in linears(unet):
        for name in ("forward", "narrow_from"):
            layer.__dict__.pop(name, None)


def linears(unet: AnyUNet) -> list[nn.Linear]:
    """Of the transformer blocks: projections of attention and both layers of the feed-forward network."""
    blocks = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    return [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]


def fits(layer: nn.Linear) -> bool:
    """Whether a GPU has products of these sides."""
    return layer.in_features % SIDE == 0 and layer.out_features % SIDE == 0


def pays(layer: nn.Linear) -> bool:
    """Whether the time that its products gain is more than its casts take, by FLOPs and bytes."""
    wide, high = layer.in_features, layer.out_features
    return wide * high / (wide + high) > _PAYS


def _forward(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401 (an nn.Linear with an attribute of ours)
    """In another type than the network's the layer is plain: so computes agreement what would be without rounding."""
    if x.dtype != layer.narrow_from:
        return functional.linear(x, layer.weight, layer.bias)
    return linear(x, layer.weight, layer.bias)


def _problem(layers: list[nn.Linear], device: torch.device, kind: torch.dtype) -> str:
    """What is wrong with fp8 on this device, or "": each shape of layer against fp32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no products of fp8; compute capability 8.9 and above have"
    sides = sorted({(layer.in_features, layer.out_features) for layer in layers})
    cases = [
        # 33 rows: the weight's gradient is filled up
        Case(fused=linear, eager=functional.linear, shapes=((3, 11, wide), (high, wide), (high,)), close=_CLOSE)
        for wide, high in sides
    ]
    return checked.alone(cases, device, kind)
