"""QuickGELU in one pass over memory: a part of `speed.transformer: fused`, and `score.activation: fused`.

The first is the text encoder's, the second that of the scorers' CLIP. transformers and open_clip compute it as a
product, a sigmoid and another product, and keep two tensors for the backward pass. bigdiff.models.quick_gelu_kernels
does it in one, and keeps the input alone.
"""

from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.activations import QuickGELUActivation

from bigdiff.models import checked
from bigdiff.models.checked import Case
from bigdiff.models.pointwise import computed
from bigdiff.runtime.world import World


def eager(given: Tensor) -> Tensor:
    """x sigmoid(1.702 x) of any shape, by torch's operations."""
    return given * torch.sigmoid(1.702 * given)


def fused(given: Tensor) -> Tensor:
    """The same by the kernels, with a gradient."""
    return computed(_kernels(), given)


def _kernels() -> ModuleType:
    from bigdiff.models import quick_gelu_kernels  # Triton comes with torch on Linux alone

    return quick_gelu_kernels


def fuse(text_encoder: CLIPTextModel, world: World) -> str:
    """Let each QuickGELU be computed by the kernels, where they work on all ranks; collective.

    Gives a sentence where they do not, or "": also where the activation is another one, which torch has as one kernel.
    """
    layers, kind = _layers(text_encoder, QuickGELUActivation), text_encoder.dtype
    if not layers:
        return ""
    problem = checked.problem([_case()], kind, world)
    if problem:
        return f"speed.transformer=fused is left out for QuickGELU: {problem}"
    _replace(layers, world.device, kind)
    return ""


def fuse_alone(network: nn.Module, layer: type[nn.Module], device: torch.device, kind: torch.dtype) -> str:
    """As `fuse`, for a network on `device` that this process alone computes, and whose QuickGELUs are `layer`s.

    Gives what is wrong with the kernels there, and leaves the network as it is, or "".
    """
    layers = _layers(network, layer)
    if not layers:
        return "its activation is not QuickGELU"
    problem = checked.alone([_case()], device, kind)
    if not problem:
        _replace(layers, device, kind)
    return problem


def release(text_encoder: CLIPTextModel) -> None:
    """Undo `fuse`."""
    for layer in _layers(text_encoder, QuickGELUActivation):
        layer.__dict__.pop("forward", None)


def _case() -> Case:
    return Case(fused=fused, eager=eager, shapes=((3, 1000),))  # programs that are full, and one that is not


def _layers(network: nn.Module, layer: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, layer)]


def _replace(layers: list[nn.Module], device: torch.device, kind: torch.dtype) -> None:
    for layer in layers:
        layer.forward = partial(_forward, layer, device.type, kind)


def _forward(layer: nn.Module, device: str, kind: torch.dtype, given: Tensor) -> Tensor:
    """By the kernels what they were tried on. Previews and self-tests give other types and devices, too: by torch."""
    if given.device.type == device and given.dtype == kind:
        return fused(given)
    plain: Tensor = type(layer).forward(layer, given)
    return plain
