"""GroupNorm and SiLU in one, with the time embedding's shift in front: `speed.norm: fused`.

A residual block reads and writes its activations for the shift, for GroupNorm and for SiLU, each by itself, and keeps
what is between for the backward pass. bigdiff.models.norm_kernels does it in one, and keeps the input alone.
"""

from functools import partial
from types import MethodType, ModuleType
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.models import checked
from bigdiff.models.checked import Case, Shapes
from bigdiff.models.components import AnyUNet
from bigdiff.runtime.world import World


def eager(groups: int, eps: float, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
    """SiLU of GroupNorm of x [B, C, H, W], to which a shift [B, C] was added, by torch's operations."""
    shifted = x if shift is None else x + shift[:, :, None, None]
    return functional.silu(functional.group_norm(shifted, groups, weight, bias, eps))


def fused(groups: int, eps: float, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
    """The same by the kernels, with a gradient; the output is channels_last."""
    found: Tensor = _GroupNormSiLU.apply(x, shift, weight, bias, groups, eps)
    return found


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 (autograd's)
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
    ) -> Tensor:
        given = x.contiguous(memory_format=torch.channels_last)
        added = None if shift is None else shift.contiguous()
        out: Tensor
        out, kept = _kernels().forward(given, added, weight, bias, groups, eps)
        ctx.save_for_backward(given, added, weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        x, shift, weight, *kept = ctx.saved_tensors
        behind = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_shift, of_weight, of_bias = _kernels().backward(behind, x, shift, weight, tuple(kept))
        added = None if shift is None else of_shift.to(shift.dtype)
        return of_x, added, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def _kernels() -> ModuleType:
    from bigdiff.models import norm_kernels  # Triton comes with torch on Linux alone

    return norm_kernels


def fuse(unet: AnyUNet, world: World) -> str:
    """Let each residual block that can compute its norms by the kernels, where they work on all ranks; collective.

    Gives a sentence where they do not, or not for all blocks, or "".
    """
    found = [block for block in unet.modules() if isinstance(block, ResnetBlock2D)]
    plain = [block for block in found if _can(block)]
    problem = checked.problem(_cases(plain), unet.dtype, world)
    if problem:
        return f"speed.norm=fused is left out: {problem}"
    for block in plain:
        block.forward = MethodType(_forward, block)
    if len(plain) < len(found):
        return f"speed.norm=fused: {len(found) - len(plain)} of {len(found)} residual blocks are of another kind"
    return ""


def fuse_alone(network: nn.Module, device: torch.device, kind: torch.dtype) -> str:
    """As `fuse`, for a network on `device` that this process alone computes, such as an autoencoder's encoder.

    Gives what is wrong with the kernels there, and leaves the network as it is, or "".
    """
    plain = [block for block in network.modules() if isinstance(block, ResnetBlock2D) and _can(block)]
    problem = checked.alone(_cases(plain), device, kind)
    for block in [] if problem else plain:
        block.forward = MethodType(_forward, block)
    return problem


def release(unet: AnyUNet) -> None:
    """Undo `fuse`."""
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.__dict__.pop("forward", None)


def _can(block: Any) -> bool:  # noqa: ANN401 (a ResnetBlock2D, whose types mypy does not see)
    usual = block.upsample is None and block.downsample is None and block.time_embedding_norm == "default"
    norms = all(isinstance(norm, nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
    return usual and norms and isinstance(block.nonlinearity, nn.SiLU)


def _cases(blocks: list[Any]) -> list[Case]:
    """Each kind of norm, with a shift and without."""
    norms = [norm for one in blocks for norm in (one.norm1, one.norm2)]
    found = []
    for channels, groups, eps in sorted({(norm.num_channels, norm.num_groups, norm.eps) for norm in norms}):
        plain: Shapes = ((2, channels, 12, 13), (channels,), (channels,))
        for shapes in (plain, (*plain, (2, channels))):
            found.append(Case(fused=partial(fused, groups, eps), eager=partial(eager, groups, eps), shapes=shapes))
    return found


def _forward(block: Any, input_tensor: Tensor, temb: Tensor | None) -> Tensor:  # noqa: ANN401 (a ResnetBlock2D)
    """diffusers' ResnetBlock2D.forward of the usual kind, with its norms fused; its version is fixed to 0.42."""
    hidden = block.conv1(_normed(block.norm1, input_tensor, None))
    shift = None
    if block.time_emb_proj is not None:
        shift = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    elif temb is not None:
        hidden = hidden + temb
    hidden = block.conv2(block.dropout(_normed(block.norm2, hidden, shift)))
    if block.conv_shortcut is not None:
        input_tensor = block.conv_shortcut(input_tensor)
    output: Tensor = input_tensor + hidden
    return output if block.output_scale_factor == 1 else output / block.output_scale_factor


def _normed(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
    return fused(norm.num_groups, norm.eps, x, norm.weight, norm.bias, shift)
