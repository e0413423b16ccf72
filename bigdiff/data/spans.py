"""Where samples lie in files of a disk, what of them the page cache has, and asking the disk for the rest."""

import ctypes
import os
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bigdiff.data.order import Ints
from bigdiff.runtime.compiled import library

_BYTE: Final = bytearray(1)  # what `cached` reads into; nobody looks at it

_ask = library("bigdiff.data._preads").bigdiff_ask
_ask.restype = None
_ask.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Spans:
    """Parts of open files, in the order in which a disk reads them best."""

    descriptors: npt.NDArray[np.int32]  # [n]
    offsets: Ints  # [n]
    lengths: Ints  # [n]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, part: slice) -> "Spans":
        return Spans(descriptors=self.descriptors[part], offsets=self.offsets[part], lengths=self.lengths[part])

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return int(self.lengths.sum())


def joined(parts: list[Spans]) -> Spans:
    """Several one behind the other."""
    none = Spans(descriptors=np.empty(0, np.int32), offsets=np.empty(0, np.int64), lengths=np.empty(0, np.int64))
    every = [none, *parts]
    return Spans(
        descriptors=np.concatenate([one.descriptors for one in every]),
        offsets=np.concatenate([one.offsets for one in every]),
        lengths=np.concatenate([one.lengths for one in every]),
    )


def ask(spans: Spans) -> None:
    """Have the kernel read them into the page cache; waits only where the disk's queue is full. It is advice."""
    descriptors = np.ascontiguousarray(spans.descriptors, np.int32)
    offsets, lengths = np.ascontiguousarray(spans.offsets, np.int64), np.ascontiguousarray(spans.lengths, np.int64)
    _ask(descriptors.ctypes.data, offsets.ctypes.data, lengths.ctypes.data, len(spans))


def cached(spans: Spans) -> bool:
    """Whether the first byte of each can be read without the disk; False where a file system cannot tell (NFS)."""
    for descriptor, offset in zip(spans.descriptors.tolist(), spans.offsets.tolist(), strict=True):
        try:
            os.preadv(descriptor, [_BYTE], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN, EOPNOTSUPP; what is wrong with a file is told to whoever needs it
            return False
    return True
