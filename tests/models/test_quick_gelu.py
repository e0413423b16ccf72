"""QuickGELU by kernels without a GPU: by Triton's interpreter, in a process of its own."""

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.activations import QuickGELUActivation
from triton_runs import interpreted

from bigdiff.models import checked, quick_gelu
from bigdiff.models.encoders import text_states
from bigdiff.runtime.world import World

CPU = torch.device("cpu")
TOKENS = torch.tensor([[0, 5, 9, 1], [0, 7, 1, 1]])
# float64 operations, by norms; whole programs and others, several, one and none; beyond where the exponential overflows
NUMBERS = """
import torch
from bigdiff.models import checked, quick_gelu
torch.manual_seed(0)
for shape in ((1,), (3, 5, 80), (2, 1024), (2, 9, 600)):
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        given, behind = (4 * torch.randn(shape)).to(kind), torch.randn(shape).to(kind)
        known = checked.gradients(quick_gelu.eager, [given.double()], behind.double())
        # as the layers around may lay them out
        turned = given.unsqueeze(-1).transpose(0, -1).contiguous().transpose(0, -1).squeeze(-1)
        for one in (given, turned):
            found = checked.gradients(quick_gelu.fused, [one], behind)
            for ours, right in zip(found, known, strict=True):
                assert ours.dtype == kind and ours.shape == right.shape
                off = float((ours.double() - right).norm() / right.norm())
                assert off < close, (shape, kind, off)
far = torch.tensor([-1e4, -300.0, -60.0, 0.0, 60.0, 300.0, 1e4])
out, slope = checked.gradients(quick_gelu.fused, [far], torch.ones(7))
assert torch.equal(out, far.clamp(min=0) + 0.0), out
assert torch.equal(slope, torch.tensor([0, 0, 0, 0.5, 1, 1, 1])), slope
assert quick_gelu.fused(torch.empty(0, 5)).shape == (0, 5)
"""
# Features of both libraries' networks with and without, against float64; and the text encoder's gradients, which learn.
# A kernel's Function in the graph says that it was called
NETWORKS = """
import copy, sys
import torch, torch.distributed as dist
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU
sys.path[:0] = ["tests/models", "tests/parts"]
from networks import TINY_CLIP
from test_quick_gelu import TOKENS, encoder
from bigdiff.models import quick_gelu
from bigdiff.models.encoders import text_states
from bigdiff.runtime.world import World
calls, forward = [], quick_gelu.fused
def counted(given):
    calls.append(given.dtype)
    return forward(given)
quick_gelu.fused = counted
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

def near(found, plain, exact, kind):
    ours, torchs = (float((one.double() - exact).norm() / exact.norm()) for one in (found, plain))
    assert ours <= {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[kind] + 2 * torchs, (ours, torchs)

def clip(network, pixels, captions):
    with torch.inference_mode():
        return network.encode_image(pixels), network.encode_text(captions)

torch.manual_seed(0)
whole, pixels, captions = CLIP(**TINY_CLIP).eval(), torch.randn(3, 3, 32, 32), torch.randint(0, 49408, (3, 77))
for kind in (torch.float32, torch.float16):
    network = copy.deepcopy(whole).to(kind)
    plain = clip(network, pixels.to(kind), captions)
    exact = clip(copy.deepcopy(network).double(), pixels.to(kind).double(), captions)
    assert quick_gelu.fuse_alone(network, QuickGELU, world.device, kind) == ""
    calls.clear()
    found = clip(network, pixels.to(kind), captions)
    assert calls == [kind] * 3
    for each in zip(found, plain, exact, strict=True):
        near(*each, kind)

def learned(network):
    network.zero_grad()
    states = text_states(network, TOKENS)
    states.backward(torch.linspace(-1, 1, states.numel()).view(states.shape).to(states))
    return {"states": states.detach(), **{name: one.grad.clone() for name, one in network.named_parameters()}}

for kind in (torch.float32, torch.bfloat16):
    network = encoder(kind)
    names, plain, exact = list(network.state_dict()), learned(network), learned(copy.deepcopy(network).double())
    assert quick_gelu.fuse(network, world) == ""
    calls.clear()
    found = learned(network)
    assert calls == [kind] * 2 and list(network.state_dict()) == names
    for name, right in exact.items():
        if float(right.norm()):  # k_proj's biases have none
            near(found[name], plain[name], right, kind)
    quick_gelu.release(network)
    again = learned(network)
    assert all(torch.equal(again[name], one) for name, one in plain.items())
"""


def encoder(kind: torch.dtype = torch.float32, activation: str = "quick_gelu") -> CLIPTextModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=10, hidden_act=activation, **sizes)).to(kind).eval()


def more(given: Tensor) -> Tensor:
    """What is easily seen."""
    return quick_gelu.eager(given) + 1


def test_output_and_gradients_are_those_of_whole_precision() -> None:
    interpreted(NUMBERS)


def test_whole_networks_give_the_same_features_and_gradients_under_the_same_names() -> None:
    interpreted(NETWORKS)


@pytest.mark.parametrize("layer", [QuickGELU, QuickGELUActivation])
def test_the_twin_is_both_libraries(layer: type[nn.Module]) -> None:
    x = 5 * torch.randn(2, 3, 8)
    assert torch.equal(quick_gelu.eager(x), layer()(x))


def test_a_device_without_the_kernels_keeps_torchs(world: World) -> None:
    network, other = encoder(), nn.Sequential(nn.Linear(4, 4), QuickGELU())
    before = text_states(network, TOKENS)
    said = quick_gelu.fuse(network, world)
    assert said.startswith("speed.transformer=fused is left out for QuickGELU: on cpu it does not run (")
    assert torch.equal(text_states(network, TOKENS), before)
    said = quick_gelu.fuse_alone(other, QuickGELU, CPU, torch.float32)
    assert said.startswith("on cpu it does not run (") and "forward" not in other[1].__dict__


def test_a_wrong_kernel_is_left_out_with_its_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_gelu, "fused", lambda given: given * torch.sigmoid(1.6 * given))
    network = encoder()
    before = text_states(network, TOKENS)
    wrong = "on cpu in float32 it computes something else"
    assert quick_gelu.fuse(network, world) == f"speed.transformer=fused is left out for QuickGELU: {wrong}"
    assert torch.equal(text_states(network, TOKENS), before)
    assert quick_gelu.fuse_alone(nn.Sequential(QuickGELU()), QuickGELU, CPU, torch.float32) == wrong


def test_every_layer_takes_the_kernels_until_they_are_released(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "problem", lambda *_: "")
    monkeypatch.setattr(quick_gelu, "fused", more)
    network, x = encoder(), torch.randn(2, 3, 8)
    assert quick_gelu.fuse(network, world) == ""
    layers = [module for module in network.modules() if isinstance(module, QuickGELUActivation)]
    assert len(layers) == 2 and all(torch.equal(one(x), more(x)) for one in layers)
    twin = copy.deepcopy(network)  # for previews
    quick_gelu.release(network)
    assert all(torch.equal(one(x), quick_gelu.eager(x)) for one in layers)
    assert not torch.equal(text_states(twin, TOKENS), text_states(network, TOKENS))


def test_what_was_not_tried_is_computed_by_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews may give a text encoder in bf16 the weights of an average in fp32."""
    monkeypatch.setattr(checked, "problem", lambda *_: "")
    monkeypatch.setattr(quick_gelu, "fused", more)
    network = encoder(torch.bfloat16)
    weights = {name: one.detach().float() for name, one in network.named_parameters()}
    before = text_states(network, TOKENS, weights)
    assert quick_gelu.fuse(network, world) == ""
    assert torch.equal(text_states(network, TOKENS, weights), before)
    layer = next(module for module in network.modules() if isinstance(module, QuickGELUActivation))
    assert layer(torch.ones(3, dtype=torch.bfloat16, device="meta")).is_meta


def test_another_activation_stays(world: World) -> None:
    network = encoder(activation="gelu")
    assert quick_gelu.fuse(network, world) == ""  # of SD 2.x: torch's is one kernel
    said = quick_gelu.fuse_alone(nn.Sequential(nn.GELU()), QuickGELU, CPU, torch.float32)
    assert said == "its activation is not QuickGELU"
