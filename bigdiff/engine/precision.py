"""What is computed in bf16, and what is not.

Masters, moments, averages, loss, noise schedule and x_t are fp32. In bf16 are the network's weights and activations,
norms and time embedding included, because computing those in fp32 changed nothing that counts. Measured with a UNet of
three levels (32, 64, 128 channels) at 16 x 16 latents, three seeds, against the same network in fp32, on a CPU:

    relative error of             the output    all gradients    the norms' gradients    the worst tensor's
    all in bf16                1.06 - 1.40 %    1.35 - 2.42 %           4.39 - 9.34 %                  66 %
    GroupNorm, LayerNorm fp32  1.05 - 1.40 %    1.30 - 2.39 %           0.53 - 1.27 %                 5.0 %
    time embedding fp32        1.05 - 1.44 %    1.36 - 2.38 %           4.35 - 9.35 %                  66 %
    LayerNorm through fp32     1.06 - 1.41 %    1.31 - 2.47 %           0.54 - 1.30 %                 5.2 %

GroupNorm and LayerNorm in bf16 compute in fp32 inside and round once: of GroupNorm's outputs 2 in 100,000, of
LayerNorm's 1 in 10,000 differ from fp32 arithmetic on the same bf16 input and weights. The sinusoid of the timestep is
fp32 in diffusers, then rounded. What the last columns show is one kernel: torch's LayerNorm on a CPU sums the gradients
of its weight and bias in bf16, 17 % and 43 % wrong over 32,768 rows (GroupNorm's: 0.3 %). CUDA's kernel sums in fp32
(its source; not measured). So a CPU gets `sum_in_fp32`, the last row, and a GPU nothing.
"""

import torch
from torch import nn

from bigdiff.config.engine_rules import in_bf16
from bigdiff.config.schema import Stage


def bf16(stage: Stage, device: torch.device) -> bool:
    """Whether the network computes in bf16 over fp32 masters; on CPU bf16 is 2.6 times slower than fp32."""
    return in_bf16(stage, device.type == "cuda")


def sum_in_fp32(module: nn.Module) -> None:
    """Let each LayerNorm within compute, and so sum its gradients, in fp32; its input, output and weights stay bf16."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.forward = _Exact(norm)  # type: ignore[method-assign,assignment]


class _Exact:
    """The forward pass of a LayerNorm through fp32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        weight, bias = (None if one is None else one.float() for one in (norm.weight, norm.bias))
        output = nn.functional.layer_norm(given.float(), norm.normalized_shape, weight, bias, norm.eps)
        return output.to(given.dtype)
