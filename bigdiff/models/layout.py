"""Keeps a UNet's activations in channels_last from the first convolution to the last.

A convolution gives that layout where its input or its weight has it. Under ZeRO no weight has: all lie in one flat
vector. And diffusers 0.42 lays activations out anew behind each transformer and before each shortcut: of 88 outputs of
a small UNet in training 78 are not channels_last, though its input is. On CUDA torch's GroupNorm gives NCHW, too.
"""

from types import MethodType
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from bigdiff.models.components import AnyUNet

_OUTPUT = "_get_output_for_continuous_inputs"  # of diffusers' Transformer2DModel, whose version is fixed to 0.42


def keep(unet: AnyUNet) -> None:
    """Give each convolution its input in channels_last, and leave out two copies of diffusers' that would undo it."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_channels_last)
        elif isinstance(module, Transformer2DModel):
            setattr(module, _OUTPUT, MethodType(_output, module))
        elif isinstance(module, ResnetBlock2D):
            # of this module alone, whose dropout has a flag of its own: it then copies no input of a shortcut, which it
            # does for the sake of DistributedDataParallel
            module.training = False


def release(unet: AnyUNet) -> None:
    """Undo `keep`."""
    for module in unet.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _channels_last]:
            del module._forward_pre_hooks[key]
        if isinstance(module, Transformer2DModel):
            module.__dict__.pop(_OUTPUT, None)
        elif isinstance(module, ResnetBlock2D):
            module.training = unet.training


def _channels_last(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (given,) = inputs
    return (given.contiguous(memory_format=torch.channels_last),)


def _output(  # noqa: PLR0913 (diffusers' arguments)
    transformer: Any,  # noqa: ANN401 (a Transformer2DModel, whose types mypy does not see)
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> torch.Tensor:
    """As diffusers', without .contiguous(): [B, H W, C] seen as [B, C, H, W] is channels_last already."""
    if transformer.use_linear_projection:
        hidden_states = transformer.proj_out(hidden_states)
    pixels = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    if not transformer.use_linear_projection:
        pixels = transformer.proj_out(pixels)
    return pixels + residual
