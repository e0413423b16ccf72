"""One latent sample as bytes: a safetensors file whose header is the same for every sample of a set.

    bytes 0-7           length of the JSON header, little endian
    bytes 8-H           JSON header, padded with spaces so that the data begins at a multiple of 8
    moments             float16 [2C, h, w], mean then log-variance, C order
    tokens              uint16 [L]
    states              float16 [L, D], the text encoder's output; optional

Any safetensors reader opens it; ours reads the whole member with one `preadv` and looks at the ranges.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the tensors of a member lie, in bytes from its start."""

    shape: tuple[int, int, int]  # of the moments: 2C, h, w
    length: int  # tokens
    header: bytes  # everything in front of the data
    moments: slice
    tokens: slice
    states: slice  # empty where none are stored
    width: int  # D of the states, 0 where none are stored
    total: int  # bytes of a member


@lru_cache(maxsize=256)
def layout(channels: int, height: int, width: int, length: int, states: int = 0) -> Layout:
    """The layout of samples with moments [channels, height, width] (channels counts mean and log-variance).

    `length` tokens, and as many text states of width `states` unless that is 0.
    """
    sizes = [2 * math.prod((channels, height, width)), 2 * length, 2 * length * states]
    ends = list(accumulate(sizes))
    described = {
        "moments": {"dtype": "F16", "shape": [channels, height, width], "data_offsets": [0, ends[0]]},
        "tokens": {"dtype": "U16", "shape": [length], "data_offsets": [ends[0], ends[1]]},
    }
    if states:
        described["states"] = {"dtype": "F16", "shape": [length, states], "data_offsets": [ends[1], ends[2]]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    first, second, third, last = (len(header) + end for end in (0, *ends))
    return Layout(
        shape=(channels, height, width),
        length=length,
        header=header,
        moments=slice(first, second),
        tokens=slice(second, third),
        states=slice(third, last),
        width=states,
        total=last,
    )


def pack(
    moments: npt.NDArray[np.float16], tokens: npt.NDArray[np.uint16], states: npt.NDArray[np.float16] | None = None
) -> bytes:
    """The bytes of one sample: moments float16 [2C, h, w], tokens uint16 [L], states float16 [L, D] or none."""
    assert moments.dtype == np.float16, moments.dtype
    assert tokens.dtype == np.uint16, tokens.dtype
    channels, height, width = moments.shape
    if states is None:
        return layout(channels, height, width, len(tokens)).header + moments.tobytes() + tokens.tobytes()
    assert states.dtype == np.float16 and len(states) == len(tokens), (states.dtype, states.shape)
    found = layout(channels, height, width, len(tokens), states.shape[1])
    return found.header + moments.tobytes() + tokens.tobytes() + states.tobytes()
