"""Each switch on a small UNet: the same numbers, the same names, and a sentence where it cannot be."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel
from triton_runs import network as interpreted_network

from bigdiff.config.speed import Speed
from bigdiff.engine.precision import sum_in_fp32
from bigdiff.models import agreement, checkpointing, layout, speed
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import World

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
KINDS = [torch.float32, torch.bfloat16]


def denoiser(kind: torch.dtype = torch.float32) -> Denoiser:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    built = Denoiser(unet, None, False).to(kind)
    if kind == torch.bfloat16:
        sum_in_fp32(built)  # as the engine does on a CPU
    return built


def sample(side: int = 8) -> Sample:
    random = torch.Generator().manual_seed(side)
    noisy, target = torch.randn(2, 2, 2, side, 8, generator=random)
    text = torch.randn(2, 5, 8, generator=random)
    laid = noisy.contiguous(memory_format=torch.channels_last)
    return Sample(noisy=laid, timesteps=torch.tensor([3, 900]), text=text, target=target)


def textless() -> tuple[Denoiser, Sample]:
    """The smallest: inductor takes seconds of g++ for each block."""
    sizes = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8,), "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "attention_head_dim": 2}
    network = Denoiser(UNet2DModel(layers_per_block=1, **sizes, **kinds), None, False)
    return network, replace(sample(), text=None)


class Called(TorchDispatchMode):
    """Counts torch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def called(network: Denoiser) -> Counter[str]:
    with Called() as calls:
        agreement.gradients(network, sample())
    return calls.names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("wanted", ["flash", "math"])
def test_attention_goes_through_the_wanted_kernel_and_gives_the_same(
    world: World, kind: torch.dtype, wanted: str, checkpointing: bool
) -> None:
    network = denoiser(kind)
    known = agreement.known(network, sample())
    if checkpointing:
        network.unet.enable_gradient_checkpointing()
    assert speed.apply(network, Speed(attention=wanted), [], world) == []
    assert known.differs(agreement.gradients(network, sample())) == ""
    layers, names = len(speed.attentions(network.unet)), called(network)
    assert layers == 8
    assert names[FLASH] == {"flash": layers, "math": 0}[wanted] * (2 if checkpointing else 1)
    assert (names["_safe_softmax"] > 0) is (wanted == "math")


@pytest.mark.parametrize("wanted", ["efficient", "cudnn"])
def test_a_kernel_that_is_not_there_leaves_attention_alone_and_is_told_once(world: World, wanted: str) -> None:
    network = denoiser()
    (line,) = speed.apply(network, Speed(attention=wanted), [], world)
    assert line == (
        f"speed.attention={wanted}: torch has no such kernel on cpu in float32 for 8 of 8 layers (heads of 4); "
        "they keep auto"
    )
    assert all(isinstance(layer.processor, AttnProcessor2_0) for layer in speed.attentions(network.unet))


def test_other_errors_of_attention_are_not_taken_for_a_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        speed.attend(denoiser().unet, "flash")


def test_without_cudnn_its_benchmark_is_told_to_have_no_effect(world: World) -> None:
    (line,) = speed.apply(denoiser(), Speed(cudnn_benchmark=True), [], world)
    assert line == "speed.cudnn_benchmark has no effect on cpu, which has no cuDNN"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("kind", "how", "regions", "again"),
    [
        (torch.float32, "blocks", 9, False),
        (torch.bfloat16, "blocks", 9, True),
        (torch.float32, "whole", 1, True),
        (torch.bfloat16, "whole", 1, "down_blocks.0.resnets.0,up_blocks"),
    ],
)
def test_a_traced_unet_gives_the_same_gradients_under_the_same_names(
    world: World, kind: torch.dtype, how: str, regions: int, again: bool | str
) -> None:
    torch.compiler.reset()
    network = denoiser(kind)
    names, weights = list(network.state_dict()), list(network.trained())
    checkpointing.recompute(network.unet, checkpointing.chosen(network.unet, again))
    known = agreement.known(network, sample())
    assert speed.apply(network, Speed(attention="math", channels_last=True), [], world) == []
    assert speed.compiled(network, how, [sample()], world, "aot_eager") == ""
    assert sum(module._compiled_call_impl is not None for module in network.modules()) == regions
    assert list(network.state_dict()) == names and list(network.trained()) == weights
    assert known.differs(agreement.gradients(network, sample())) == ""
    speed.reset(network)
    assert not any(module._compiled_call_impl for module in network.modules())
    assert called(network)[FLASH] > 0


def test_equal_blocks_are_compiled_once_and_each_shape_before_the_first_step(world: World) -> None:
    torch.compiler.reset()
    network, graphs = denoiser(), []
    layout.keep(network.unet)  # blocks that are given other layouts are not equal

    def counting(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    assert speed.compiled(network, "blocks", [sample(8), sample(16)], world, counting) == ""
    assert len(speed.blocks(network.unet)) == 9
    # of two shapes: the transformer, and residual blocks of 8 and of 16 channels into 8 and those in the middle, whose
    # output diffusers divides by 1 where it divides the others' by 1.0
    assert len(graphs) == 8
    for side in (16, 8):
        agreement.gradients(network, sample(side))
    assert len(graphs) == 8


def test_inductor_itself_is_compared_in_every_gradient(world: World) -> None:
    """On this machine it may be right or wrong; what counts is that the run then has the plain network's gradients."""
    torch.compiler.reset()
    network, given = textless()
    known = agreement.known(network, given)
    said = speed.apply(network, Speed(compile="blocks"), [given], world)
    assert any(module._compiled_call_impl for module in network.modules()) is (not said)
    assert known.differs(agreement.gradients(network, given)) == ""


def zeroing(number: int) -> Callable[..., Any]:
    """A backend that is right but for one output of each backward pass, which is zero."""

    def plain(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
        return graph.forward

    def wrong(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            outputs = list(graph.forward(*inputs))
            places = [place for place, one in enumerate(outputs) if one is not None]
            outputs[places[number]] = torch.zeros_like(outputs[places[number]])
            return outputs

        return run

    compiler: Callable[..., Any] = aot_autograd(fw_compiler=plain, bw_compiler=wrong)
    return compiler


@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_wrong_gradients_behind_a_right_loss_are_found_and_the_network_trains_plain(world: World, how: str) -> None:
    torch.compiler.reset()
    network = denoiser()
    plain = agreement.gradients(network, sample())
    line = speed.compiled(network, how, [sample()], world, zeroing(0))
    assert line.startswith(f"speed.compile={how} is left out, and the UNet trains uncompiled: of 168 gradients ")
    assert "with a loss that is right" in line and "\n" not in line
    after = agreement.gradients(network, sample())
    assert all(torch.equal(after.gradients[name], one) for name, one in plain.gradients.items())


def failing(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
    raise FileNotFoundError("no compiler here")


def breaking(module: torch.nn.Module, _: Any) -> None:
    torch._dynamo.graph_break()


def test_what_cannot_be_compiled_trains_plain_with_the_reason(world: World) -> None:
    torch.compiler.reset()
    network = denoiser()
    line = speed.compiled(network, "whole", [sample()], world, failing)
    assert "trains uncompiled: it cannot be compiled (" in line and "no compiler here" in line and "\n" not in line
    network.unet.mid_block.resnets[0].register_forward_pre_hook(breaking)
    line = speed.compiled(network, "whole", [sample()], world, "aot_eager")
    assert "trains uncompiled: it cannot be compiled (" in line  # and not: compiled in two halves, without a word
    assert not any(module._compiled_call_impl for module in network.modules())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_fused_transformer_blocks_give_the_same_gradients_under_the_same_names(kind: str) -> None:
    interpreted_network({"transformer": "fused"}, {"_ComputedBackward": 4, "_LayerNormBackward": 12}, kind)


def test_without_their_kernels_transformer_blocks_stay_as_they_are(world: World) -> None:
    network = denoiser()
    plain = agreement.gradients(network, sample())
    first, second = speed.apply(network, Speed(transformer="fused"), [], world)
    assert first.startswith("speed.transformer=fused is left out for GEGLU: on cpu it does not run (")
    assert second.startswith("speed.transformer=fused is left out for LayerNorm: on cpu it does not run (")
    after = agreement.gradients(network, sample())
    assert all(torch.equal(after.gradients[name], one) for name, one in plain.gradients.items())


@pytest.mark.parametrize(("how", "lines"), [("kept", 3), ("all", 3), ("compiled", 2)])
def test_the_text_encoder_is_fused_unless_it_is_compiled(world: World, how: Any, lines: int) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = Denoiser(denoiser().unet, CLIPTextModel(CLIPTextConfig(vocab_size=10, **sizes)), False)
    said = speed.apply(network, Speed(transformer="fused", text_encoder=how), [], world)
    assert len(said) == lines and ("is left out for QuickGELU: on cpu it does not run (" in said[-1]) is (lines == 3)


def test_the_options_of_graphs_are_known_to_inductor() -> None:
    speed.compile_unet(denoiser().unet, "whole", "inductor", graphs=True)  # of an unknown one torch says so here
    assert torch._inductor.list_mode_options("reduce-overhead").items() <= speed.GRAPHS.items()


def test_without_cuda_graphs_are_told_to_have_no_effect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(speed, "BACKEND", uncapturable)
    network, given = textless()
    (line,) = speed.apply(network, Speed(compile="blocks", cuda_graphs=True), [given], world)
    assert line == "speed.cuda_graphs has no effect on cpu, which has none"
    assert any(module._compiled_call_impl for module in network.modules())


def stale(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor], options: Any = None) -> Callable[..., Any]:
    """With graphs the first call's outputs for ever, as of a graph into which no input is copied."""
    kept: list[Any] = []

    def run(*inputs: Any) -> Any:
        if not options or not kept:
            kept[:] = [graph.forward(*inputs)]
        return kept[0]

    return run


def uncapturable(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor], options: Any = None) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        if options:
            raise RuntimeError("operation not permitted when stream is capturing")
        return graph.forward(*inputs)

    return run


@pytest.mark.parametrize(
    ("backend", "reason"),
    [(stale, "its loss is "), (uncapturable, "it cannot be captured (operation not permitted when stream is")],
)
def test_graphs_that_are_wrong_leave_the_network_compiled_without_them(
    world: World, monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any], reason: str
) -> None:
    torch.compiler.reset()
    (network, given), device = textless(), torch.device("cuda")
    monkeypatch.setattr(speed, "BACKEND", backend)
    known = agreement.known(network, given)
    said = speed._compiled(network, Speed(compile="blocks", cuda_graphs=True), [given], Named(world, device))
    assert len(said) == 2 and said[1] == ""
    assert said[0].startswith(f"speed.cuda_graphs is left out: {reason}")
    assert any(module._compiled_call_impl for module in network.modules())
    assert known.differs(agreement.gradients(network, given)) == ""


class Named:
    """This world, with a device that only its name says."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.size, self.gather, self.device = world.size, world.gather, device


RANKS = """
import importlib.util, sys
sys.path.insert(0, "tests/parts")
spec = importlib.util.spec_from_file_location("cases", "tests/models/test_speed.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from bigdiff.models import speed
from bigdiff.runtime.world import enter, leave
world = enter(60)
network = cases.denoiser()
print(speed.compiled(network, "whole", [cases.sample()], world, cases.zeroing(0) if world.rank else "aot_eager"))
print(any(module._compiled_call_impl for module in network.modules()))
leave()
"""


def test_what_fails_on_one_rank_is_left_out_on_all(run_ranks: Callable[..., list[str]]) -> None:
    first, second = (output.splitlines() for output in run_ranks(RANKS, 2))
    assert first == second
    assert "trains uncompiled on rank 1: of 168 gradients" in first[0]
    assert first[1] == "False"
