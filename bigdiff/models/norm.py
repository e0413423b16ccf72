"""GroupNorm and SiLU in one, with the time embedding's shift in front: `speed.norm: fused`.

A residual block reads and writes its activations for the shift, for GroupNorm and for SiLU, each by itself, and keeps
what is between for the backward pass. bigdiff.models.norm_kernels does it in one, and keeps the input alone.
"""

from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any, Final

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.models.components import AnyUNet
from bigdiff.runtime.world import World

Norm = Callable[[nn.GroupNorm, Tensor, Tensor | None], Tensor]  # of x [B, C, H, W] and a shift [B, C], or none
_CLOSE: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # to the twin, relative, on a trial


def eager(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
    """The kernels' twin, by torch's operations."""
    shifted = x if shift is None else x + shift[:, :, None, None]
    return functional.silu(functional.group_norm(shifted, norm.num_groups, norm.weight, norm.bias, norm.eps))


def fused(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
    """The same by the kernels, with a gradient; the output is channels_last."""
    given = (x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps)
    found: Tensor = _Fused.apply(*given)
    return found


class _Fused(torch.autograd.Function):
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
    problem = next((one for one in world.gather(_problem(plain, unet.device, unet.dtype)) if one), "")
    if problem:
        return f"speed.norm=fused is left out: {problem}"
    for block in plain:
        block.forward = MethodType(_forward, block)
    if len(plain) < len(found):
        return f"speed.norm=fused: {len(found) - len(plain)} of {len(found)} residual blocks are of another kind"
    return ""


def release(unet: AnyUNet) -> None:
    """Undo `fuse`."""
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.__dict__.pop("forward", None)


def _can(block: Any) -> bool:  # noqa: ANN401 (a ResnetBlock2D, whose types mypy does not see)
    usual = block.upsample is None and block.downsample is None and block.time_embedding_norm == "default"
    norms = all(isinstance(norm, nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
    return usual and norms and isinstance(block.nonlinearity, nn.SiLU)


def _problem(blocks: list[Any], device: torch.device, kind: torch.dtype) -> str:
    """What is wrong with the kernels on this device, or "": each kind of norm against its twin."""
    kinds = {(norm.num_channels, norm.num_groups, norm.eps): norm for one in blocks for norm in (one.norm1, one.norm2)}
    try:
        for norm in kinds.values():
            for shifted in (False, True):
                if not _agrees(norm, device, kind, shifted=shifted):
                    return f"on {device.type} in {str(kind).removeprefix('torch.')} it computes something else"
    except Exception as error:  # noqa: BLE001 (of a compiler, a driver, an import: the run goes on without)
        return f"on {device.type} it does not run ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def _agrees(norm: nn.GroupNorm, device: torch.device, kind: torch.dtype, *, shifted: bool) -> bool:
    """Whether output and gradients of x, shift, weight and bias are those of fp32 operations, to rounding."""
    random = torch.Generator().manual_seed(0)
    shapes = [(2, norm.num_channels, 12, 13), (2, norm.num_channels)]
    x, shift = (torch.randn(shape, generator=random).to(device, kind).requires_grad_() for shape in shapes)
    wide = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, device=device, dtype=torch.float32)
    with torch.no_grad():
        for own in (wide.weight, wide.bias):
            own.copy_(torch.randn(own.shape, generator=random).to(kind))
    narrow = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, device=device, dtype=kind)
    narrow.load_state_dict(wide.state_dict())
    behind = torch.randn(shapes[0], generator=random).to(device, kind)
    known = _gradients(eager, wide, (x.detach().float(), shift.detach().float() if shifted else None), behind.float())
    found = _gradients(fused, narrow, (x.detach(), shift.detach() if shifted else None), behind)
    return all(
        bool((one.float() - other).norm() <= _CLOSE[kind] * other.norm())
        for one, other in zip(found, known, strict=True)
    )


def _gradients(how: Norm, norm: nn.GroupNorm, given: tuple[Tensor, Tensor | None], behind: Tensor) -> list[Tensor]:
    """Output, then the gradients of all that has one."""
    inputs = [one.requires_grad_() for one in given if one is not None]
    out = how(norm, given[0], given[1])
    return [out.detach(), *torch.autograd.grad(out, [*inputs, norm.weight, norm.bias], behind)]


def _forward(block: Any, input_tensor: Tensor, temb: Tensor | None) -> Tensor:  # noqa: ANN401 (a ResnetBlock2D)
    """diffusers' ResnetBlock2D.forward of the usual kind, with its norms fused; its version is fixed to 0.42."""
    hidden = block.conv1(fused(block.norm1, input_tensor, None))
    shift = None
    if block.time_emb_proj is not None:
        shift = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    elif temb is not None:
        hidden = hidden + temb
    hidden = block.conv2(block.dropout(fused(block.norm2, hidden, shift)))
    if block.conv_shortcut is not None:
        input_tensor = block.conv_shortcut(input_tensor)
    output: Tensor = (input_tensor + hidden) / block.output_scale_factor
    return output
