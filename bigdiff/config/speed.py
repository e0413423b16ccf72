"""How a stage's network is computed, and not what: no setting here may change a result beyond rounding.

One rounds coarsely: `linear`, an experiment.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Switches of the UNet and of a frozen text encoder.

    docs/speed.md has what each should give and cost, and what of that was measured.

    Older ones stand in `engine`: channels_last (of the input), gradient_checkpointing, bucket_elements. AdamW is always
    torch's fused one, and a moving average one pass over memory.
    """

    # engine.channels_last lays out the input alone, and diffusers' first transformer loses it; this keeps it up to the
    # last convolution. Costs a copy wherever an operator gives another layout, as GroupNorm does on CUDA
    channels_last: bool = False
    # torch's kernel for attention; auto: the first in torch's own order that can. A layer that the wanted one cannot
    # compute on this device keeps auto, and the run says so. math keeps all scores in memory: for comparisons
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = "auto"
    # fused: GroupNorm, SiLU and the time embedding in front of them by kernels of our own, which keep less for the
    # backward pass. A device on which they do not run, or do not compute the same, keeps plain, and the run says so
    norm: Literal["plain", "fused"] = "plain"
    # fused: GEGLU and LayerNorm of the transformer blocks, and the text encoder's QuickGELU, by kernels of our own, of
    # which the activations' keep less for the backward pass. Each is left out where it does not run or does not compute
    # the same, as above; QuickGELU also with text_encoder=compiled, which fuses by itself
    transformer: Literal["plain", "fused"] = "plain"
    # by torch.compile: each residual and transformer block by itself (equal ones once), or the UNet as one graph, which
    # takes longer to compile and leaves more to fuse. Costs minutes at the start for each shape, and a comparison with
    # the plain network; where that fails, the run says so and trains uncompiled
    compile: Literal["none", "blocks", "whole"] = "none"
    # with `compile`: what it has compiled is captured as CUDA graphs, which one call of the host replays. Pays where
    # the host is slower than the GPU, as with few images a pass; keeps the memory of each shape for itself. Where it
    # fails or gives other gradients, the run says so and trains compiled, without graphs
    cuda_graphs: bool = False
    # cuDNN tries its convolutions on each new shape and keeps the fastest. Costs seconds a shape; which one is kept may
    # differ from start to start, and with it the rounding, so that a resume is no longer bit for bit
    cudnn_benchmark: bool = False
    # which captions a frozen text encoder is given. kept: those that dropout keeps, as the empty one's states are
    # computed once; all: the dropped ones, too, as empty ones; compiled: all, in one shape, by torch.compile, which is
    # tried before the first step; where its states differ, the run says so and takes kept
    text_encoder: Literal["kept", "all", "compiled"] = "kept"
    # An experiment that changes results: products of the transformer blocks' linear layers from fp8 operands, which are
    # 4 % and more off. fp8: all of them; fp8_wide: those alone whose casts cost less than their products gain, by
    # FLOPs and bytes. A device on which they do not run, or are further off, keeps plain, and the run says so
    linear: Literal["plain", "fp8", "fp8_wide"] = "plain"
