"""A frozen text encoder by torch.compile, where it then gives its plain states.

The compiled function stands beside the module, which stays plain: previews call it with other shapes.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import CLIPTextModel

from bigdiff.models import checked
from bigdiff.models.agreement import TOLERANCE, WIDER
from bigdiff.models.encoders import text_states
from bigdiff.models.speed import beginning
from bigdiff.runtime.world import World

Encode: TypeAlias = Callable[[Tensor], Tensor]  # int64 token ids [B, L] -> states [B, L, D]


def compiled(
    text_encoder: CLIPTextModel, tokens: Tensor, world: World, backend: str | Callable[..., Any]
) -> tuple[Encode | None, str]:
    """The states of token ids in the shape of `tokens`, int64 [B, L], by compiled code; collective.

    Where it does not give the plain states on all ranks: None, and a sentence that says why.
    """
    encode = _compiled(text_encoder, backend)
    problem = checked.located(_tried(text_encoder, encode, tokens), world)
    if not problem:
        return encode, ""
    return None, f"speed.text_encoder=compiled is left out, and text is encoded uncompiled{problem}"


def _compiled(text_encoder: CLIPTextModel, backend: str | Callable[..., Any]) -> Encode:
    # whole, and for one shape: a break, or another shape, would be compiled again in the middle of a run
    run = torch.compile(
        lambda tokens: text_states(text_encoder, tokens), fullgraph=True, dynamic=False, backend=backend
    )

    def encode(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            states: Tensor = run(tokens)
        return states

    return encode


def _tried(text_encoder: CLIPTextModel, encode: Encode, tokens: Tensor) -> str:
    """What is wrong with the compiled states, or ""."""
    try:
        found = encode(tokens)
    except TorchDynamoException as error:
        return f"it cannot be compiled ({beginning(error)})"
    with torch.no_grad():
        plain = text_states(text_encoder, tokens)
    return differs(found, plain, exact(text_encoder, tokens))


def exact(text_encoder: CLIPTextModel, tokens: Tensor) -> Tensor:
    """The states [B, L, D] in the next wider type, from the same rounded weights, one caption at a time."""
    kind = WIDER[text_encoder.dtype]
    weights = {name: one.detach().to(kind) for name, one in text_encoder.named_parameters()}
    with torch.no_grad():
        return torch.cat([text_states(text_encoder, one[None], weights) for one in tokens])


def differs(found: Tensor, plain: Tensor, exact: Tensor) -> str:
    """What is wrong with the states `found`; "" where no caption's are further from the exact ones than may be.

    Their relative L2 error may be twice that of the plain ones, and a little, as in bigdiff.models.agreement.
    """
    if found.dtype != plain.dtype or found.shape != plain.shape:
        return f"its states are {found.dtype} {tuple(found.shape)}, the plain ones {plain.dtype} {tuple(plain.shape)}"
    ours, theirs = (((one.to(exact) - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max() for one in (plain, found))
    # a NaN is not less than anything
    if float(theirs) <= TOLERANCE[plain.dtype] + 2 * float(ours):
        return ""
    return f"a caption's states are {float(theirs):.2g} off, relatively, and the plain ones {float(ours):.2g}"
