"""What a latent set stores of the text encoder: states of the captions, and of the empty one."""

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from bigdiff.config.errors import RunError
from bigdiff.models.components import token_ids
from bigdiff.models.encoders import text_states
from bigdiff.prep.encoder import Encoder, Half
from bigdiff.runtime.transfer import Results, there


def states(encoder: Encoder, tokens: npt.NDArray[np.uint16]) -> Half | None:
    """The text encoder's states float16 [B, L, D] of token ids [B, L], as the trainer would compute them in float32.

    None where they are not stored.

    Raises:
        RunError: when float16 cannot hold them.
    """
    return finish(start(encoder, tokens))


@torch.inference_mode()
def start(encoder: Encoder, tokens: npt.NDArray[np.uint16]) -> Results | None:
    """Begin to compute `states`; on a GPU nothing is waited for."""
    if encoder.text_encoder is None:
        return None
    ids = there(torch.from_numpy(tokens.astype(np.int64)), encoder.device)
    found = text_states(encoder.text_encoder, ids).half()
    return Results(found.isfinite().all(), found)


def finish(started: Results | None) -> Half | None:
    """What `start` began, once it is there.

    Raises:
        RunError: as `states`.
    """
    if started is None:
        return None
    finite, found = started.tensors()
    if not bool(finite):
        raise RunError("the text encoder gives states beyond float16's range: encode without --text-states")
    result: Half = found.numpy()
    return result


def empty(encoder: Encoder) -> bytes:
    """A safetensors file of the caption "": `tokens` uint16 [L] and `states` float16 [L, D]."""
    tokens = token_ids(encoder.tokenizer, [""]).numpy().astype(np.uint16)
    found = states(encoder, tokens)
    assert found is not None, "a set with text states"
    content: bytes = safetensors.numpy.save({"tokens": tokens[0], "states": found[0]})
    return content
