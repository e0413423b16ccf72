"""One latent sample as bytes: a safetensors file whose header is the same for every sample of a set.

    bytes 0-7           length of the JSON header, little endian
    bytes 8-H           JSON header, padded with spaces so that the data begins at a multiple of 8
    moments             float16 [2C, h, w], mean then log-variance, C order
    tokens              uint16 [L]

Any safetensors reader opens it; ours reads the whole member with one `preadv` and looks at the two ranges.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache

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
    total: int  # bytes of a member


@lru_cache(maxsize=16)
def layout(channels: int, height: int, width: int, length: int) -> Layout:
    """The layout of samples with moments [channels, height, width] (channels counts mean and log-variance)."""
    moments_bytes = 2 * math.prod((channels, height, width))
    total_data = moments_bytes + 2 * length
    described = {
        "moments": {"dtype": "F16", "shape": [channels, height, width], "data_offsets": [0, moments_bytes]},
        "tokens": {"dtype": "U16", "shape": [length], "data_offsets": [moments_bytes, total_data]},
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    begin, middle, end = len(header), len(header) + moments_bytes, len(header) + total_data
    return Layout(
        shape=(channels, height, width),
        length=length,
        header=header,
        moments=slice(begin, middle),
        tokens=slice(middle, end),
        total=end,
    )


def pack(moments: npt.NDArray[np.float16], tokens: npt.NDArray[np.uint16]) -> bytes:
    """The bytes of one sample: moments float16 [2C, h, w] and tokens uint16 [L]."""
    assert moments.dtype == np.float16, moments.dtype
    assert tokens.dtype == np.uint16, tokens.dtype
    channels, height, width = moments.shape
    return layout(channels, height, width, len(tokens)).header + moments.tobytes() + tokens.tobytes()
