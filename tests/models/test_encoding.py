"""A compiled text encoder: the plain one's states, or the plain one with a sentence."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.models import encoding
from bigdiff.models.encoders import text_states
from bigdiff.runtime.world import World

TOKENS = torch.randint(1000, (3, 12), generator=torch.Generator().manual_seed(0))
KINDS = [torch.float32, torch.bfloat16]


def encoder(kind: torch.dtype = torch.float32) -> CLIPTextModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=1000, **sizes)).to(kind).requires_grad_(False).eval()


@torch.no_grad()
def plain(text_encoder: CLIPTextModel, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return text_states(text_encoder, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_states_from_one_graph_and_leaves_the_module_plain(world: World, kind: torch.dtype) -> None:
    torch.compiler.reset()
    text_encoder, graphs = encoder(kind), []

    def counting(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    encode, said = encoding.compiled(text_encoder, TOKENS, world, counting)
    assert encode is not None and said == "" and len(graphs) == 1
    for tokens in (TOKENS, TOKENS.flip(0)):
        found = encode(tokens)
        assert encoding.differs(found, plain(text_encoder, tokens), encoding.exact(text_encoder, tokens)) == ""
        assert not found.requires_grad
    plain(text_encoder, TOKENS[:2])  # a preview's shape
    assert len(graphs) == 1


def test_inductor_s_states_are_right_or_left_out(world: World) -> None:
    torch.compiler.reset()
    text_encoder = encoder()
    encode, said = encoding.compiled(text_encoder, TOKENS, world, "inductor")
    assert (encode is None) is bool(said)
    if encode is not None:
        torch.testing.assert_close(encode(TOKENS), plain(text_encoder), rtol=0, atol=1e-5)


def spoiling(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A backend that is right but for the states, which `change` changes."""

    def backend(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            outputs = list(graph.forward(*inputs))
            place = next(number for number, one in enumerate(outputs) if one.shape == (3, 12, 16))
            outputs[place] = change(outputs[place])
            return outputs

        return run

    return backend


def one_token(states: torch.Tensor) -> torch.Tensor:
    changed = states.clone()
    changed[1, 7] = states[1, 6]
    return changed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (one_token, "a caption's states are "),
        (lambda states: states * 1.05, "a caption's states are 0.05"),
        (lambda states: states * float("nan"), "a caption's states are nan off"),
        (lambda states: states.half(), "its states are torch.float16 (3, 12, 16), the plain ones torch."),
    ],
)
def test_wrong_states_are_found(
    world: World, kind: torch.dtype, change: Callable[[torch.Tensor], torch.Tensor], why: str
) -> None:
    torch.compiler.reset()
    encode, said = encoding.compiled(encoder(kind), TOKENS, world, spoiling(change))
    assert encode is None
    assert said.startswith(f"speed.text_encoder=compiled is left out, and text is encoded uncompiled: {why}")


def failing(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
    raise FileNotFoundError("no compiler here")


def test_what_cannot_be_compiled_is_told_in_one_line(world: World) -> None:
    torch.compiler.reset()
    encode, said = encoding.compiled(encoder(), TOKENS, world, failing)
    assert encode is None and "it cannot be compiled (" in said and "no compiler here" in said and "\n" not in said
    broken = encoder()
    broken.encoder.layers[0].register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    encode, said = encoding.compiled(broken, TOKENS, world, "eager")
    assert encode is None and "it cannot be compiled (" in said  # and not: compiled in two halves, without a word


RANKS = """
import importlib.util
spec = importlib.util.spec_from_file_location("cases", "tests/models/test_encoding.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from bigdiff.models import encoding
from bigdiff.runtime.world import enter, leave
world = enter(60)
backend = cases.spoiling(cases.one_token) if world.rank else "eager"
encode, said = encoding.compiled(cases.encoder(), cases.TOKENS, world, backend)
print(encode is None, said)
leave()
"""


def test_what_fails_on_one_rank_is_left_out_on_all(run_ranks: Callable[..., list[str]]) -> None:
    first, second = run_ranks(RANKS, 2)
    assert first == second
    assert first.startswith("True speed.text_encoder=compiled is left out, ")
    assert "uncompiled on rank 1: a caption's states are " in first
