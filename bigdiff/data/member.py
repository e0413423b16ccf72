"""One latent sample as bytes: a safetensors file whose header is the same for every sample of a set.

    bytes 0-7           length of the JSON header, little endian
    bytes 8-H           JSON header, padded with spaces so that the data begins at a multiple of 8
    moments             float16 [2C, h, w], mean then log-variance, C order; or `mean`, float16 [C, h, w]
    tokens              uint16 [L]
    states              float16 [L, D], the text encoder's output; optional
    mirrored            as moments, of the mirrored picture; optional
    crops               float16 [N - 1, 2C, h, w], of the picture's other boxes in order; optional
    mirrored_crops      as crops, each of them mirrored; where both options are

Any safetensors reader opens it; ours reads the whole member with one `preadv` and looks at the ranges.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What of a picture is stored."""

    mean: bool = False  # the mean alone
    mirrored: bool = False  # and that of the mirrored picture
    crops: int = 1  # boxes of the picture of which that is stored, the centre among them


MOMENTS: Final = Form()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the tensors of a member lie, in bytes from its start."""

    shape: tuple[int, int, int]  # of the moments: 2C, h, w; of the mean: C, h, w
    length: int  # tokens
    header: bytes  # everything in front of the data
    moments: slice  # or the mean
    tokens: slice
    states: slice  # empty where none are stored
    width: int  # D of the states, 0 where none are stored
    mirrored: slice  # empty where none are stored
    crops: slice  # likewise
    mirrored_crops: slice  # likewise
    boxes: int  # of each picture, the centre among them
    mean: bool  # whether the mean alone is stored
    total: int  # bytes of a member

    @property
    def stored(self) -> str:
        """What a member holds, for messages."""
        said = f"{'mean' if self.mean else 'moments'} {self.shape} and {self.length} tokens"
        said += f" with states of {self.width}" if self.width else ""
        said += f" of {self.boxes} crops" if self.boxes > 1 else ""
        return said + (" and mirrored ones" if self.mirrored.start < self.mirrored.stop else "")


@lru_cache(maxsize=256)
def layout(channels: int, height: int, width: int, length: int, states: int = 0, form: Form = MOMENTS) -> Layout:
    """The layout of samples with moments [channels, height, width] (channels counts mean and log-variance, if stored).

    `length` tokens, and as many text states of width `states` unless that is 0.
    """
    size, name = 2 * math.prod((channels, height, width)), "mean" if form.mean else "moments"
    others = (form.crops - 1) * size
    sizes = [size, 2 * length, 2 * length * states, form.mirrored * size, others, form.mirrored * others]
    ends = list(accumulate(sizes))
    described: dict[str, dict[str, Any]] = {
        name: {"dtype": "F16", "shape": [channels, height, width], "data_offsets": [0, ends[0]]},
        "tokens": {"dtype": "U16", "shape": [length], "data_offsets": [ends[0], ends[1]]},
    }
    if states:
        described["states"] = {"dtype": "F16", "shape": [length, states], "data_offsets": [ends[1], ends[2]]}
    if form.mirrored:
        described["mirrored"] = {**described[name], "data_offsets": [ends[2], ends[3]]}
    several = {"dtype": "F16", "shape": [form.crops - 1, channels, height, width]}
    if others:
        described["crops"] = {**several, "data_offsets": [ends[3], ends[4]]}
    if others and form.mirrored:
        described["mirrored_crops"] = {**several, "data_offsets": [ends[4], ends[5]]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = [len(header) + end for end in (0, *ends)]
    moments, tokens, text_states, mirrored, crops, mirrored_crops = map(slice, starts, starts[1:])
    return Layout(
        shape=(channels, height, width),
        length=length,
        header=header,
        moments=moments,
        tokens=tokens,
        states=text_states,
        width=states,
        mirrored=mirrored,
        crops=crops,
        mirrored_crops=mirrored_crops,
        boxes=form.crops,
        mean=form.mean,
        total=starts[-1],
    )


def pack(
    moments: npt.NDArray[np.float16],
    tokens: npt.NDArray[np.uint16],
    states: npt.NDArray[np.float16] | None = None,
    mirrored: npt.NDArray[np.float16] | None = None,
    mean: bool = False,
    crops: Sequence[npt.NDArray[np.float16]] = (),
) -> bytes:
    """The bytes of one sample.

    Moments float16 [2C, h, w], or with `mean` [C, h, w]; tokens uint16 [L]; states float16 [L, D] or none; the mirrored
    picture's moments or none; the other boxes' [N - 1, 2C, h, w] or none and, beside mirrored moments, theirs mirrored.
    """
    assert moments.dtype == np.float16, moments.dtype
    assert tokens.dtype == np.uint16, tokens.dtype
    assert states is None or (states.dtype == np.float16 and len(states) == len(tokens)), "states of each token"
    assert mirrored is None or (mirrored.dtype == np.float16 and mirrored.shape == moments.shape), "of equal pictures"
    assert not crops or len(crops) == 1 + (mirrored is not None), "mirrored, too, where the centre is"
    assert all(one.dtype == np.float16 and one.shape[1:] == moments.shape for one in crops), "of equal boxes"
    assert len({len(one) for one in crops}) <= 1, "as many mirrored boxes"
    form = Form(mean=mean, mirrored=mirrored is not None, crops=1 + (len(crops[0]) if crops else 0))
    channels, height, width = moments.shape
    found = layout(channels, height, width, len(tokens), 0 if states is None else states.shape[1], form)
    stored = [one.tobytes() for one in (moments, tokens, states, mirrored, *crops) if one is not None]
    return found.header + b"".join(stored)
