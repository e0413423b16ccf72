"""The switches of a stage's `speed:` on its networks: how they are computed, not what.

A compiled network is not believed before it was seen to agree with the plain one in every gradient: on a CPU, torch
2.13's inductor gave the right loss and zero gradients to 84 of the 208 parameters of a small diffusers UNet.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bigdiff.config.speed import Speed
from bigdiff.models import agreement, checked, geglu, layer_norm, layout, linear, norm, quick_gelu
from bigdiff.models.agreement import Sample
from bigdiff.models.components import AnyUNet
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import World

KERNELS: Final = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
BLOCKS: Final = (ResnetBlock2D, Transformer2DModel, Attention)  # of speed.compile=blocks, none within another
SHAPES: Final = 4096  # versions of one function that may be compiled: one for each kind of block and bucket
BACKEND = "inductor"
# of torch.compile's mode "reduce-overhead", but that what cannot be captured is an error and not left out silently
GRAPHS: Final = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
REPLAYED: Final = 3  # calls until a graph is replayed: the first one warms up, the second one is captured
_MISSING: Final = ("No available kernel", "No viable backend")  # how torch's messages begin, on CUDA and on a CPU


def apply(denoiser: Denoiser, speed: Speed, samples: Iterable[Sample], world: World) -> list[str]:
    """Put the switches on; gives a sentence for each that could not be, or not wholly. Collective.

    `samples` are on the network's device, one of each shape that will come: a compiled UNet is tried on all of them.
    """
    said = []
    if speed.channels_last:
        layout.keep(denoiser.unet)
    if speed.attention != "auto":
        said.append(attend(denoiser.unet, speed.attention))
    if speed.norm == "fused":
        said.append(norm.fuse(denoiser.unet, world))
    if speed.transformer == "fused":
        said += [geglu.fuse(denoiser.unet, world), layer_norm.fuse(denoiser.unet, world)]
        # where it is compiled, inductor fuses by itself, and compares with the plain module
        if denoiser.text_encoder is not None and speed.text_encoder != "compiled":
            said.append(quick_gelu.fuse(denoiser.text_encoder, world))
    if speed.linear != "plain":
        said.append(linear.narrow(denoiser.unet, speed.linear, world))
    if speed.cudnn_benchmark:
        said.append(benchmark(world.device))
    if speed.compile != "none":
        said += _compiled(denoiser, speed, list(samples), world)
    return [line for line in said if line]


def reset(denoiser: Denoiser) -> None:
    """Take all switches off again, but for what torch keeps of compiled code and tried convolutions."""
    unet = denoiser.unet
    uncompile(unet)
    layout.release(unet)
    norm.release(unet)
    geglu.release(unet)
    layer_norm.release(unet)
    linear.release(unet)
    if denoiser.text_encoder is not None:
        quick_gelu.release(denoiser.text_encoder)
    for layer in attentions(unet):
        if isinstance(layer.processor, Through):
            layer.set_processor(layer.processor.plain)
    torch.backends.cudnn.benchmark = False


class Through:
    """The attention of a `plain` processor of diffusers through one of torch's kernels."""

    def __init__(self, plain: Any, kernel: SDPBackend) -> None:  # noqa: ANN401 (diffusers has no type for them all)
        self.plain, self.kernel = plain, kernel

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As AttnProcessor2_0's, also where a checkpointed block computes it again, far from any context of ours."""
        with sdpa_kernel(self.kernel):
            states: torch.Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return states


def attentions(unet: AnyUNet) -> list[Attention]:
    """The layers of `unet` that attend, in the order of its modules."""
    return [layer for layer in unet.modules() if isinstance(layer, Attention)]


def attend(unet: AnyUNet, wanted: str) -> str:
    """Let each layer that can attend through the kernel `wanted`; a sentence on those that cannot, or ""."""
    kernel, layers = KERNELS[wanted], attentions(unet)
    lacking = [layer for layer in layers if not has_kernel(layer, kernel, unet.device, unet.dtype)]
    for layer in layers:
        if layer not in lacking:
            layer.set_processor(Through(layer.processor, kernel))
    if not lacking:
        return ""
    widths = sorted({_heads(layer)[1] for layer in lacking})
    kind = str(unet.dtype).removeprefix("torch.")
    return (
        f"speed.attention={wanted}: torch has no such kernel on {unet.device.type} in {kind} for {len(lacking)} of "
        f"{len(layers)} layers (heads of {', '.join(map(str, widths))}); they keep auto"
    )


def has_kernel(layer: Attention, kernel: SDPBackend, device: torch.device, kind: torch.dtype) -> bool:
    """Whether torch has `kernel` for the heads of `layer` on this device, with gradients, by trying it."""
    heads, width = _heads(layer)
    shape = (2, heads, 64, width)  # what a kernel refuses lies in device, type and width
    query, key, value = (torch.ones(shape, device=device, dtype=kind, requires_grad=True) for _ in range(3))
    try:
        with sdpa_kernel(kernel):
            functional.scaled_dot_product_attention(query, key, value)
    except RuntimeError as error:
        if str(error).startswith(_MISSING):
            return False
        raise
    return True


def _heads(layer: Attention) -> tuple[int, int]:
    """How many, and their width."""
    heads = int(layer.heads)
    return heads, int(layer.inner_dim) // heads


def benchmark(device: torch.device) -> str:
    """Let cuDNN try its convolutions; a sentence where there is no cuDNN, or ""."""
    if device.type != "cuda":
        return f"speed.cudnn_benchmark has no effect on {device.type}, which has no cuDNN"
    torch.backends.cudnn.benchmark = True
    return ""


def _compiled(denoiser: Denoiser, speed: Speed, samples: list[Sample], world: World) -> list[str]:
    """With CUDA graphs if they are asked for and right; else without; sentences as `apply`'s."""
    said = []
    if speed.cuda_graphs and world.device.type != "cuda":
        said = [f"speed.cuda_graphs has no effect on {world.device.type}, which has none"]
    elif speed.cuda_graphs:
        said = [compiled(denoiser, speed.compile, samples, world, BACKEND, graphs=True)]
        if said == [""]:
            return []
    return [*said, compiled(denoiser, speed.compile, samples, world, BACKEND)]


def compiled(
    denoiser: Denoiser,
    how: str,
    samples: Iterable[Sample],
    world: World,
    backend: str | Callable[..., Any],
    *,
    graphs: bool = False,
) -> str:
    """Compile the UNet where that gives its plain gradients on all ranks; else leave it plain and say why; collective.

    A run that does not compile is slower by a part. One that refused would lose nodes for which it waited in a queue.
    """
    compile_unet(denoiser.unet, how, backend, graphs)
    problem = checked.located(_tried(denoiser, samples, graphs), world)
    if not problem:
        return ""
    uncompile(denoiser.unet)
    if graphs:
        torch.compiler.reset()  # with the memory of what was captured
        return f"speed.cuda_graphs is left out{problem}"
    return f"speed.compile={how} is left out, and the UNet trains uncompiled{problem}"


def _tried(denoiser: Denoiser, samples: Iterable[Sample], graphs: bool) -> str:
    """What is wrong with the compiled UNet, or ""; compiles it for each sample's shape, and captures it."""
    for sample in samples:
        with uncompiled(denoiser.unet):
            known = agreement.known(denoiser, sample)
        for number in range(REPLAYED if graphs else 1):
            # a graph that has not taken its inputs over computes with those before it: the same samples, turned round
            given = agreement.reversed_rows(sample) if number % 2 else sample
            try:
                wrong = known.differs(agreement.gradients(denoiser, given))
            except TorchDynamoException as error:  # of tracing, of lowering and of the compilers behind it
                wrong = f"it cannot be compiled ({beginning(error)})"
            except RuntimeError as error:  # of capturing and replaying
                if not graphs:
                    raise
                wrong = f"it cannot be captured ({beginning(error)})"
            if wrong:
                return wrong
    return ""


def compile_unet(unet: AnyUNet, how: str, backend: str | Callable[..., Any], graphs: bool = False) -> None:
    """Have the UNet compiled when it is next called, in place: no name in its state changes.

    Graphs must be whole: a break in one would make the rest slow without a word. Shapes are static, as a step's are.
    """
    # process-wide, and nothing else here compiles; more versions than this are an error, because graphs must be whole
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = SHAPES
    for region in [unet] if how == "whole" else blocks(unet):
        region.compile(fullgraph=True, dynamic=False, backend=backend, options=GRAPHS if graphs else None)


def uncompile(unet: AnyUNet) -> None:
    """Have the plain UNet called from now on."""
    for module in unet.modules():
        module._compiled_call_impl = None


@contextmanager
def uncompiled(unet: AnyUNet) -> Iterator[None]:
    """Have the plain UNet called meanwhile."""
    compiled = [(module, module._compiled_call_impl) for module in unet.modules()]
    uncompile(unet)
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost of BLOCKS within."""
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if isinstance(child, BLOCKS) else blocks(child)
    return found


def beginning(error: Exception) -> str:
    """An error of compilation as one line.

    Where a backend fails, torch says its name in the first line and what happened in the second.
    """
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
